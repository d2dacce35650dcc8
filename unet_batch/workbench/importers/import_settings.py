"""Chooses between what the user said and what a source holds, and keeps where each setting comes from."""

from __future__ import annotations

from unet_batch.contract import MeanStd, Normalize
from unet_batch.errors import JobError
from unet_batch.workbench.export.arguments import parse_normalize
from unet_batch.workbench.importers.imported import Activation, Color, Fact, Fit, How, Options

GIVEN = "the command line"


class ImportSettings:
    """Settings of one import. Each method returns a setting and adds its fact.

    source: the file that the settings are read from, where a method names no other.
    """

    def __init__(self, options: Options, source: str) -> None:
        self.options = options
        self.source = source
        self.facts: list[Fact] = []

    def add(self, field: str, value: object, source: str, how: How) -> None:
        """Add a fact of the importer's own."""
        self.facts.append(Fact(field, str(value), source, how))

    def normalize(self, found: Normalize | None, channels: int, source: str, *, how: How = "read") -> Normalize:
        """The normalisation of `--normalize`, else the found one. Raises JobError without both."""
        given = self.options.normalize
        if given is not None:
            found, source, how = parse_normalize(given, channels), "--normalize", "given"
        if found is None:
            raise JobError("the normalisation of the training is not known: give it with --normalize")
        self.add("input.normalize", _in_words(found), source, how)
        return found

    def size_hw(self, channels: int) -> tuple[int, int] | None:
        """Height and width of `--input`; None without it. Raises JobError if it has other channels than the model."""
        given = self.options.input_chw
        if given is not None and given[0] != channels:
            raise JobError(f"--input says {given[0]} channel(s), but the model takes {channels} ({self.source})")
        return None if given is None else given[1:]

    def color(
        self, channels: int, found: Color | None = None, source: str | None = None, *, how: How = "read"
    ) -> Color:
        """The meaning of the channels of `--color`, else the found one, else by their number."""
        given = self.options.color
        guess: Color = {1: "gray", 3: "rgb"}.get(channels, "bands")  # type: ignore[assignment]
        color = given or found or guess
        how = "given" if given else how if found else "default" if channels != 3 else "guessed"
        origin = "--color" if given else (source or self.source) if found else f"{channels} channel(s)"
        self.add("input.color", f"{color}, {channels} channel(s)", origin, how)
        return color

    def fit(self, otherwise: Fit, source: str | None = None, *, how: How = "guessed") -> Fit:
        """How an image gets the input's size."""
        given = self.options.fit
        fit = given or otherwise
        origin = "--fit" if given else source or "the source does not say it"
        self.add("input.fit", fit, origin, "given" if given else how)
        return fit

    def activation(self, found: Activation | None, said_by: str) -> Activation:
        """What the output values are: `--activation`, else what the source says.

        `--activation sigmoid` over logits means that classes are independent. Raises JobError for other changes, and
        if neither says it.
        """
        given = self.options.activation
        if found is not None and given not in (None, found) and (given, found) != ("sigmoid", "logits"):
            raise JobError(f"--activation {given} contradicts {said_by} of {self.source}, which says {found}")
        activation = given or found
        if activation is None:
            raise JobError("the meaning of the output values is not known: give it with --activation")
        self.add(
            "output.activation", activation, *(("--activation", "given") if given else (self._at(said_by), "read"))
        )
        return activation

    def classes(
        self, count: int | None, activation: Activation, *, key: str, names: tuple[str, ...] | None = None
    ) -> tuple[tuple[str, ...], int | None]:
        """Class names by channel, and the background class.

        count: channels of the output. names: those of the source. Without names, class 0 of several exclusive classes
        is guessed to be the background. Raises JobError if --classes has another number of names.
        """
        given = self.options.classes
        if given is not None and count is not None and len(given) != count:
            raise JobError(f"--classes has {len(given)} name(s), but the model has {count} class(es) ({self._at(key)})")
        if given is None and names is None and count is None:
            raise JobError("the classes are not known: give their names with --classes, by channel of the output")
        exclusive = activation not in ("sigmoid",)
        chosen = given or names or _guessed(count or 0, exclusive=exclusive)
        how: How = "given" if given else "read" if names else "guessed"
        self.add("output.classes", _few(chosen), "--classes" if given else self._at(key), how)
        background = 0 if exclusive and (len(chosen) > 1 or activation == "labels") else None
        if background is not None and chosen is not None:
            self.add("output.background", chosen[0], "the first class", "guessed")
        return chosen, background

    def _at(self, key: str) -> str:
        return f"{self.source}: {key}" if key else self.source


def _guessed(count: int, *, exclusive: bool) -> tuple[str, ...]:
    if count == 1:
        return ("foreground",)
    return ("background" if exclusive else "class_0", *(f"class_{n}" for n in range(1, count)))


def _in_words(normalize: Normalize) -> str:
    if isinstance(normalize, MeanStd):
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (normalize.mean, normalize.std))
        return f"mean_std: mean {mean}; std {std}"
    said = ", ".join(f"{key} {value}" for key, value in normalize.model_dump(exclude={"kind"}).items())
    return f"{normalize.kind}: {said}" if said else normalize.kind


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
