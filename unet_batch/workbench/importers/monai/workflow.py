"""What runs a MONAI bundle: its evaluator, data set, handlers, weights and code. What may change masks is refused.

Formulas and names: MONAI 1.6, engines/evaluator.py and handlers/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.importers.monai.config import BundleConfig
from unet_batch.workbench.importers.monai.targets import ENGINES, KNOWN, class_of

WEIGHTS = "models/model.pt"
_EVALUATOR_KEYS = frozenset({
    *("_target_", "_desc_", "_requires_", "_disabled_", "_mode_"),
    *("device", "val_data_loader", "network", "inferer", "postprocessing", "val_handlers", "prepare_batch", "mode"),
    *("iteration_update", "epoch_length", "non_blocking", "key_val_metric", "additional_metrics", "metric_cmp_fn"),
    *("amp", "amp_kwargs", "event_names", "event_to_attr", "decollate", "to_kwargs", "compile", "compile_kwargs"),
})  # fmt: skip
"""Arguments of SupervisedEvaluator. Those that change masks are compared; the others decide how MONAI works."""
_HANDLERS = frozenset({
    *("CheckpointLoader", "CheckpointSaver", "StatsHandler", "LogfileHandler", "GarbageCollector", "MetricLogger"),
    *("MetricsSaver", "TensorBoardStatsHandler", "TensorBoardImageHandler", "TensorBoardHandler", "MLFlowHandler"),
    *("ClearMLHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "MeanDice", "MeanIoUHandler", "ConfusionMatrix"),
    *("HausdorffDistance", "SurfaceDistance", "ROCAUC", "AveragePrecision", "IgniteMetricHandler", "ProgressBar"),
    *("RangeHandler", "RangePushHandler", "RangePopHandler", "MarkHandler", "ProbMapProducer", "PanopticQuality"),
    *("MeanSquaredError", "MeanAbsoluteError", "RootMeanSquaredError", "PeakSignalToNoiseRatio", "CalibrationError"),
})  # fmt: skip
"""Handlers that load weights, measure, write or log, and change no mask."""
_WORKS_ON = re.compile(r"@(?:network_def|network|inferer|preprocessing|postprocessing)\b(?!\w)")
_HARMLESS_CODE = (
    re.compile(r"\$@network(_def)?((\.to\(@device\))|(\.eval\(\))|(\.float\(\)))*"),
    re.compile(r"\$@network(_def)?\.load_state_dict\(torch\.load\(@ckpt_path(,[\w=@'.()]*)*\)(\['\w+'\])?\)"),
)
"""Code on the network that changes nothing in it, or loads the weights that are read here; without blanks."""


def check_workflow(config: BundleConfig) -> tuple[str, ...]:
    """Notes for the user, a sentence each.

    Raises ModelRefused where the bundle does something else than its keys network, preprocessing, inferer and
    postprocessing say.
    """
    _check_targets(config)
    _check_transform(config)
    _check_code(config)
    notes = _check_evaluator(config)
    for value in config.tree.values():
        _check_handlers(config, value)
    return notes


def _check_evaluator(config: BundleConfig) -> tuple[str, ...]:
    found = config.at("evaluator")
    if found is None:
        return ()
    target = str(found.get("_target_") if isinstance(found, Mapping) else found)
    if not isinstance(found, Mapping) or class_of(target, ENGINES) != "SupervisedEvaluator":
        raise ModelRefused(f"{config.name}: evaluator is {target}, and only SupervisedEvaluator is understood")
    if unknown := sorted(found.keys() - _EVALUATOR_KEYS):
        raise ModelRefused(f"{config.name}: the argument {unknown[0]} of evaluator is not understood")
    for key in ("network", "inferer", "postprocessing"):
        said = found.get(key)
        if key not in found and key in config.tree and key != "network":
            raise ModelRefused(
                f"{config.name}: evaluator does not use @{key}, so MONAI does not apply it: remove the key {key}, or "
                f'write "{key}": "@{key}" in evaluator'
            )
        if said not in (None, f"@{key}", f"$@{key}"):
            raise ModelRefused(f"{config.name}: {key} of evaluator is {said!r}, not @{key}")
    for key in ("prepare_batch", "iteration_update", "mode"):
        if found.get(key) not in (None, "eval", "$ForwardMode.EVAL", "$monai.utils.ForwardMode.EVAL"):
            raise ModelRefused(f"{config.name}: {key} of evaluator is not understood")
    if config.plain_or_none(found.get("amp"), "amp of evaluator"):
        return ("MONAI computes in half precision on a GPU (amp of evaluator), and here float32 is exact",)
    return ()


def _check_targets(config: BundleConfig) -> None:
    """Raises ModelRefused for the first component, at any depth, that names code of the bundle or of others."""
    for where, found in _components(config, config.tree):
        target = found["_target_"]
        if isinstance(target, str) and not KNOWN.fullmatch(target):
            raise ModelRefused(
                f"{config.name}: {where} is {target}, which is not MONAI's: what it does is not known, and no other "
                "code is run"
            )


def _components(config: BundleConfig, value: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The components inside a value that the file does not disable, with their places."""
    if isinstance(value, Mapping):
        if config.plain_or_none(value.get("_disabled_"), where) is True:
            return
        if "_target_" in value:
            yield where, value
        for key, inner in value.items():
            yield from _components(config, inner, f"{where}, {key}" if where else str(key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _components(config, inner, f"{where}, entry {position + 1}")


def _check_transform(config: BundleConfig) -> None:
    """The transform of the evaluator's data must be the pipeline that is read."""
    for where, found in _components(config, config.tree):
        is_data = str(found["_target_"]).rpartition(".")[2].endswith("Dataset")
        if not is_data or "train" in where:
            continue
        if "transform" not in found and "preprocessing" in config.tree:
            raise ModelRefused(
                f"{config.name}: {where} does not use @preprocessing, so MONAI does not apply it: remove the key "
                f'preprocessing, or write "transform": "@preprocessing" in {where}'
            )
        if found.get("transform") not in (None, "@preprocessing", "$@preprocessing"):
            raise ModelRefused(
                f"{config.name}: transform of {where} is {_shown(found['transform'])}, not @preprocessing"
            )


def _check_handlers(config: BundleConfig, value: Any) -> None:
    """Handlers at any place: a component of `val_handlers` or `handlers`, or one with the name of a handler."""
    if not isinstance(value, list):
        return
    for each in value:
        target = each.get("_target_") if isinstance(each, Mapping) else None
        if not isinstance(target, str) or each.get("_disabled_") is True:
            continue
        name = target.rpartition(".")[2]
        is_handler = value is config.tree.get("handlers") or value is config.tree.get("val_handlers")
        if (is_handler or ".handlers." in f".{target}") and name not in _HANDLERS:
            raise ModelRefused(
                f"{config.name}: the handler {target} may change masks, and it is not understood. Understood are "
                f"{', '.join(sorted(_HANDLERS))}"
            )


def _check_code(config: BundleConfig) -> None:
    """Raises ModelRefused for code that works on the network or on a pipeline."""
    for key, value in config.tree.items():
        if key in ("evaluator", "preprocessing", "postprocessing", "inferer", "network_def"):
            continue  # read as components, where code is refused at its place
        for text in _code(value):
            bare = "".join(text.split())
            if _WORKS_ON.search(bare) and not any(known.fullmatch(bare) for known in _HARMLESS_CODE):
                raise ModelRefused(
                    f"{config.name}: {key} holds the code {_shown(text)}, which may change masks, and no code of a "
                    "bundle is run"
                )


def _code(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("$"):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _code(each)


def weights_file(config: BundleConfig, source: Path) -> Path:
    """The file of weights that the bundle's texts name, inside of the bundle; else models/model.pt.

    Raises JobError if there is none, or if a text names a file that is not known.
    """
    named = [("ckpt_path", config.tree.get("ckpt_path")), *_checkpoints(config.tree)]
    chosen: Path | None = None
    for key, text in named:
        if text is None or (isinstance(text, str) and text.lstrip("$") == "@ckpt_path"):
            continue
        path = _inside(config, source, text)
        if path is None:
            raise JobError(
                f"{config.name}: {key} is {text!r}, which names no file of {source}: give the file of weights with "
                "--weights"
            )
        if chosen is not None and path != chosen:
            raise JobError(
                f"{config.name} names two files of weights, {chosen.name} and {path.name}: give one with --weights"
            )
        chosen = path
    chosen = chosen or source / WEIGHTS
    if not chosen.is_file():
        found = [path.name for path in sorted((source / "models").glob("*.ts"))]
        program = (
            f" ({found[0]} is a program: `--trusted` imports it alone, without this configuration)" if found else ""
        )
        raise JobError(f"{source} has no {WEIGHTS}{program}: give the file of weights with --weights")
    return chosen


def _inside(config: BundleConfig, source: Path, text: Any) -> Path | None:
    """The file that a text names, if it is one of the bundle."""
    if not isinstance(text, str):
        return None
    said = config.value(text, "ckpt_path")
    if isinstance(said, str) and not said.startswith(("$", "@", "%")):
        root = config.value("@bundle_root", "bundle_root") if "bundle_root" in config.tree else "."
        relative = said.removeprefix(root).lstrip("/") if isinstance(root, str) and said.startswith(root) else said
        parts = PurePosixPath(relative)
        if not parts.is_absolute() and ".." not in parts.parts and (source / parts).is_file():
            return source / parts
    # Code that joins paths is compared, not evaluated.
    return source / WEIGHTS if text.rstrip("'\" )").endswith(WEIGHTS) else None


def _checkpoints(value: Any) -> Iterator[tuple[str, Any]]:
    """The path of every CheckpointLoader inside a value."""
    if isinstance(value, Mapping):
        if str(value.get("_target_")).rpartition(".")[2] == "CheckpointLoader":
            yield "load_path of CheckpointLoader", value.get("load_path")
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _checkpoints(inner)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
