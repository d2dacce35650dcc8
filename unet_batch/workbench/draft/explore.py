"""From MODEL and ARCHIVE to a drafted contract and job: reads, looks, tries what is open, and guesses the rest.

Nothing is written but a model that had to be exported, imported or merged. Guesses are marked as guesses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_batch.errors import ImageError
from unet_batch.model import graph
from unet_batch.model.contract import resolve
from unet_batch.model.optimized import holds_fp32
from unet_batch.model.tile_size import AXES
from unet_batch.session.engines import file_precision
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.store.objects import canonical
from unet_batch.strict import validate
from unet_batch.workbench.draft.allowed import Size, size_of
from unet_batch.workbench.draft.from_graph import from_graph
from unet_batch.workbench.draft.known import (
    OVERLAPPING,
    Draft,
    Known,
    Origin,
    normal,
    of_contract,
    with_answer,
    with_background,
    written,
)
from unet_batch.workbench.draft.look import Seen, archive_section, look, looking_job, spread
from unet_batch.workbench.draft.questions import Question, measured_activation, open_questions, unasked
from unet_batch.workbench.draft.rehearsal import Head, Rehearsal, Tried, sigmoid
from unet_batch.workbench.draft.source import (
    HEADS,
    ModelRequest,
    SourceModel,
    contract_of,
    read_model_source,
    with_probabilities,
)
from unet_batch.workbench.export.arguments import parse_normalize

BETTER = 1.15
"""How much better a value must do than those before it to be taken: small differences are chance."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with what was tried for it."""

    question: Question
    tried: tuple[Tried, ...]
    """One for each option, in their order."""
    taken: int
    """Position of the option that was taken."""
    why: str


@dataclass(frozen=True, slots=True)
class Explored:
    """A draft with all that led to it."""

    source_model: SourceModel
    draft: Draft
    job: Mapping[str, Any]
    """The job file as a tree, without output."""
    seen: Seen
    answers: tuple[Answer, ...]
    final: Tried
    """The pictures under the draft."""
    notes: tuple[str, ...] = field(default=())
    """Sentences for the user."""
    differences: tuple[Size, ...] = ()
    """What the user allowed to differ from the framework, measured on the pictures."""

    def with_choice(self, field_name: str, value: Any) -> Explored:
        """The same with a value that the user chose."""
        return replace(self, draft=with_answer(self.draft, field_name, Known(value, "given")))

    def with_head(self, request: ModelRequest) -> Explored:
        """The same with a file that returns probabilities, where the user chose sigmoid for a file with logits."""
        asked = {answer.question.field for answer in self.answers}
        if "output.activation" not in asked or self.draft.value("output.activation") == "logits":
            return self
        source_model, draft = _headed(self.source_model, self.draft, request, self.draft.value("output.activation"))
        job = {**self.job, "model": {**self.job["model"], "path": source_model.path}}
        return replace(self, source_model=source_model, draft=draft, job=job)


def explore(
    request: ModelRequest, archive: str, *, name: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Explored:
    """The draft for a model and an archive. name: of the job; default: the model's.

    say: takes a line before each step that may take long.
    Raises JobError, ModelRefused, ContractError and StorageError.
    """
    source_model = read_model_source(request, say)
    begun = _begun(source_model)
    asked = request.activation if request.activation in HEADS else None
    if asked is not None and begun.has("output.activation") and begun.value("output.activation") == "logits":
        source_model, begun = _headed(source_model, begun, request, asked)
    draft = _said(begun, request)
    section = archive_section(archive, [request.out, *_files_of(request.model)])
    job_tree: dict[str, Any] = {**source_model.job, "name": _job_name(name or source_model.stem), "input": section}
    job_tree["model"] = {"path": source_model.path, "engine": "auto"}
    if file_precision(source_model.data, source_model.path) != "fp32" and not holds_fp32(source_model.data):
        job_tree["check"] = {"images": 0}
    file = read_model(source_model.data, canonical(source_model.path), None)
    job = looking_job(job_tree, request.out)
    model = resolve(draft.contract(), file, job.tiling)
    say(f"looking at images of {archive}")
    seen = look(job, model, source_model.data)
    draft, more = unasked(draft, seen, model.tile_hw)
    job_tree |= more
    # A model of any size scores parts of pictures whole: they are smaller than the tiles of the job.
    rehearsal = Rehearsal(source_model.data, resolve(draft.contract(), file, job.tiling), job, source_model.layers)
    measured = _measured(begun, rehearsal, seen).fields["output.activation"]
    if asked is not None and (measured.value, measured.origin) == ("logits", "measured"):
        source_model, draft = _headed(source_model, draft, request, asked)
        job_tree["model"]["path"] = source_model.path
        file = read_model(source_model.data, canonical(source_model.path), None)
        headed = resolve(draft.contract(), file, job.tiling)
        rehearsal = Rehearsal(source_model.data, headed, job, source_model.layers)
    draft = with_background(_measured(draft, rehearsal, seen))
    known: dict[str, Tried] = {}

    def tried(label: str, variant: Draft, head: Head = None) -> Tried:
        key = json.dumps(variant.tree, sort_keys=True)
        if key not in known:
            known[key] = rehearsal.tried(label, variant, spread(seen.pictures), head)
        return replace(known[key], label=label)

    answers: list[Answer] = []
    for question in open_questions(draft, seen, model.tile_hw):
        variants = [with_answer(draft, question.field, Known(o.value, "guessed")) for o in question.options]
        say(f"trying {question.field} on the pictures: {', '.join(o.label for o in question.options)}")
        heads = [sigmoid if o.value == "sigmoid" else None for o in question.options]
        runs = tuple(tried(o.label, v, h) for o, v, h in zip(question.options, variants, heads, strict=True))
        taken, why = best(question, runs, classifies=draft.classifies)
        others = tuple(written(o.value) for n, o in enumerate(question.options) if n != taken)
        others = (OVERLAPPING,) if question.field == "output.activation" else others
        draft = draft.put(question.field, Known(question.options[taken].value, "guessed", why, others), over=True)
        answers.append(Answer(question, runs, taken, why))
    final = tried("as drafted", draft)
    resolve(draft.contract(), file, validate(TilingSpec, job_tree.get("tiling", {}), "tiling"))
    shown = spread(seen.pictures)
    sizes = tuple(size_of(each, rehearsal, rehearsal.under(draft), shown) for each in source_model.differences)
    notes = (*_notes(source_model, seen, final), *(f"allowed difference: {size}" for size in sizes))
    return Explored(source_model, draft, job_tree, seen, tuple(answers), final, notes, sizes)


def best(question: Question, runs: Sequence[Tried], *, classifies: bool = False) -> tuple[int, str]:
    """The option to take, and the reason as a phrase: what fits the network's statistics, else the best masks."""
    if question.field == "output.activation":  # borders of masks do not tell whether the training had exclusive classes
        return 0, "the file returns logits, and this is their usual meaning"
    distances = [run.distance for run in runs]
    if question.field != "input.fit" and all(distance is not None for distance in distances):
        far = [float(distance) for distance in distances if distance is not None]
        taken = next(n for n, distance in enumerate(far) if distance <= min(far) * BETTER)
        second = min(far[:taken] + far[taken + 1 :])
        return taken, (
            "it fits the statistics in the network's normalisation layers best "
            f"(distance {far[taken]:.2g}, the next has {second:.2g})"
        )
    if classifies:
        return 0, "the usual value; labels alone do not tell, so compare them on the sheet"
    values = [run.plausibility for run in runs]
    if not max(values):
        return 0, "no variant finds anything on these pictures, so this is only the usual value"
    if question.field == "input.color" and values[0]:
        # Nearly every network takes red first, and contrast along borders is about as high in the wrong order.
        return 0, f"the usual order; compare with {runs[1].label}"
    taken = next(n for n, value in enumerate(values) if value * BETTER >= max(values))
    if not taken:
        return 0, "the usual value; no other one gives clearly better masks on these pictures"
    run = runs[taken]
    return taken, (
        f"masks on {run.useful:.0%} of the pictures, with borders on edges ({run.edges:.1f} times the usual contrast, "
        f"{runs[0].edges:.1f} with {runs[0].label})"
    )


def _files_of(model: str) -> list[Path]:
    """The file of a model and the contract beside it, which may lie among the pictures."""
    path = Path(model.removeprefix("file://")).expanduser()
    return [found for found in (path, path.with_suffix(".yaml")) if path.suffix and found.is_file()]


def _begun(source_model: SourceModel) -> Draft:
    found = contract_of(source_model)
    if found is None:
        return from_graph(source_model)[0]
    draft = of_contract(*found)
    for fact in source_model.facts:
        if fact.field in draft.fields:
            known = Known(draft.value(fact.field), _ORIGINS[fact.how], f"{fact.source}{_BY_DEFAULT[fact.how]}")
            draft = draft.put(fact.field, known, over=True)
    return draft


_ORIGINS: Mapping[str, Origin] = {"read": "read", "default": "read", "guessed": "guessed", "given": "given"}
_BY_DEFAULT = {"read": "", "default": " (a default)", "guessed": "", "given": ""}


def _normalization(text: str, draft: Draft) -> dict[str, Any]:
    return normal(parse_normalize(text, draft.value("input.channels")))


def _said(draft: Draft, request: ModelRequest) -> Draft:
    """The draft with what the user gave. Raises JobError where that cannot be."""
    given: dict[str, Any] = {
        "input.color": request.color,
        "input.fit": request.fit,
        "output.activation": request.activation,
        "input.normalize": None if request.normalize is None else _normalization(request.normalize, draft),
        "output.classes": None if request.classes is None else list(request.classes),
    }
    for name, value in given.items():
        if value is not None:
            draft = draft.put(name, Known(value, "given"), over=True)
    background = draft.value("output.background")
    if isinstance(background, int) and background >= len(draft.value("output.classes") or ()):
        draft = draft.put("output.background", Known(0, "guessed"), over=True)
    return with_background(draft)


def _headed(
    source_model: SourceModel, draft: Draft, request: ModelRequest, activation: str
) -> tuple[SourceModel, Draft]:
    """Model and draft with an operator behind the logits, and its output's name."""
    axis = AXES[draft.value("output.layout") or draft.value("input.layout") or "nchw"]["channels"]
    output = draft.value("output.name") or graph.outputs(graph.read(source_model.data, source_model.path))[0][0]
    source_model, name = with_probabilities(source_model, output, axis, request, activation)
    draft = draft.put("output.name", Known(name, "read", f"behind the logits {output}"), over=True)
    return source_model, draft.put("output.activation", Known(activation, "given"), over=True)


def _measured(draft: Draft, rehearsal: Rehearsal, seen: Seen) -> Draft:
    values = []
    for picture in spread(seen.pictures):
        try:
            values.append(rehearsal.values(draft, picture))
        except ImageError:
            continue
    return measured_activation(draft, values) if values else draft


def _job_name(text: str) -> str:
    kept = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in text)
    return kept.strip("._-")[:64] or "job"


def _notes(source_model: SourceModel, seen: Seen, final: Tried) -> list[str]:
    notes = [*source_model.notes]
    if seen.rejected:
        key, why = seen.rejected[0]
        notes.append(f"{len(seen.rejected)} of the images that were tried cannot be scored, for instance {key}: {why}")
    notes += seen.hints
    if final.trouble:
        notes.append(f"some pictures cannot be scored: {final.trouble}")
    elif not final.useful and not final.draft.classifies:
        notes.append(
            "every mask is empty or full on the pictures that were tried: the contract may be wrong, or the pictures "
            "are not what the model was trained on"
        )
    return notes
