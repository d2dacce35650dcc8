"""What a folder names and no importer understands is refused by name, before a framework is imported.

No framework is needed: every sentence comes from reading settings.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.importers import nnunet_plans, sources
from unet_batch.workbench.importers.imported import Imported, Options
from unet_batch.workbench.importers.monai.targets import INFERERS, NETWORKS, TRANSFORMS, class_of
from unet_batch.workbench.importers.smp_encoders import normalisation
from unet_batch.workbench.importers.sources import Importer, read_source

# MONAI --------------------------------------------------------------------------------------------------------------

IMAGE = {"keys": "image"}
BUNDLE: dict[str, Any] = {
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 3,
        "channels": [8, 16],
        "strides": [2],
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "LoadImaged", **IMAGE}, {"_target_": "ScaleIntensityd", **IMAGE}],
    },
    "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32]},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred"}]},
}


def with_value(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at `a/0/b`; a new key is added."""
    made: Any = copy.deepcopy(dict(tree))
    inner, (*above, last) = made, path.split("/")
    for name in above:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    return made


def bundle(folder: Path, tree: Mapping[str, Any]) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(tree))
    return folder


FOREIGN = {
    "network_def/_target_": "scripts.UNet",
    "preprocessing/_target_": "scripts.Compose",
    "preprocessing/transforms/1/_target_": "scripts.my_transforms.ScaleIntensityd",
    "postprocessing/transforms/0/_target_": "evilpkg.Activationsd",
    "inferer/_target_": "scripts.SlidingWindowInferer",
    "dataset/_target_": "scripts.Dataset",
    "evaluator": {"_target_": "scripts.SupervisedEvaluator"},
    "val_handlers": [{"_target_": "scripts.CheckpointLoader"}],
    "dataloader": {"_target_": "DataLoader", "dataset": {"_target_": "scripts.Dataset"}},
}


@pytest.mark.parametrize("path", FOREIGN)
def test_code_of_a_bundle_is_refused_wherever_it_is_named(tmp_path: Path, path: str) -> None:
    """A class of the bundle's scripts may have the name of one of MONAI's, and do anything."""
    named = FOREIGN[path]
    with pytest.raises(ModelRefused, match=r"(scripts|evilpkg)\.\w+.*no other code is run"):
        read_source(bundle(tmp_path / "bundle", with_value(BUNDLE, path, named)), Options())


@pytest.mark.parametrize(
    ("target", "package", "name"),
    [
        ("UNet", NETWORKS, "UNet"),
        ("monai.networks.nets.UNet", NETWORKS, "UNet"),
        ("monai.networks.nets.basic_unet.BasicUNet", NETWORKS, "BasicUNet"),
        ("monai.transforms.LoadImaged", TRANSFORMS, "LoadImaged"),
        ("monai.transforms.io.dictionary.LoadImaged", TRANSFORMS, "LoadImaged"),
        ("monai.inferers.inferer.SlidingWindowInferer", INFERERS, "SlidingWindowInferer"),
        ("monai.networks.nets.UNet", TRANSFORMS, None),
        ("monai_networks.nets.UNet", NETWORKS, None),
        ("nets.UNet", NETWORKS, None),
        ("monai.networks.nets.UNet()", NETWORKS, None),
        ("UNet\n", NETWORKS, None),
    ],
)
def test_monais_own_names_are_bare_or_begin_with_their_package(target: str, package: str, name: str | None) -> None:
    """As its documentation writes them."""
    assert class_of(target, package) == name


def test_a_step_that_makes_the_image_of_another_key_is_refused(tmp_path: Path) -> None:
    """It works on another key, and would have been passed over."""
    step = {"_target_": "CopyItemsd", "keys": "other", "names": ["image"]}
    tree = with_value(BUNDLE, "preprocessing/transforms", [*BUNDLE["preprocessing"]["transforms"], step])
    with pytest.raises(ModelRefused, match="CopyItemsd makes image of another key"):
        read_source(bundle(tmp_path / "bundle", tree), Options())


def test_the_image_is_the_key_that_monais_evaluator_takes(tmp_path: Path) -> None:
    """Not the label that is loaded before it, whose steps do not count."""
    load, scale = BUNDLE["preprocessing"]["transforms"]
    steps = [{**load, "keys": ["label", "image"]}, {"_target_": "Lambdad", "keys": "image", "func": "$f"}, scale]
    with pytest.raises(ModelRefused, match="Lambdad is not understood"):
        read_source(bundle(tmp_path / "bundle", with_value(BUNDLE, "preprocessing/transforms", steps)), Options())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("preprocessing/transforms/0/keys", [], r"transform 1: keys must be a name or a list of names, not \[\]"),
        ("postprocessing/transforms/0/keys", [], r"transform 1: keys must be a name or a list of names, not \[\]"),
        ("preprocessing/transforms/1/keys", [{}], "transform 2: keys must be"),
        ("network_def/strides", [[1]], r"strides must be positive numbers.*not \[\[1\]\]"),
        ("network_def/strides", ["x"], "strides must be positive numbers"),
        ("network_def/strides", [None], "strides must be positive numbers"),
        ("network_def/strides", [0], "strides must be positive numbers"),
    ],
)
def test_a_damaged_bundle_is_one_sentence(tmp_path: Path, path: str, value: Any, said: str) -> None:
    """The file, the place and the value."""
    with pytest.raises(ModelRefused, match=rf"inference\.json: .*{said}"):
        read_source(bundle(tmp_path / "bundle", with_value(BUNDLE, path, value)), Options())


# Hugging Face -------------------------------------------------------------------------------------------------------

SEGFORMER = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
UPERNET = {"model_type": "upernet", "backbone_config": {"model_type": "convnext", "depths": [1]}}


def hub_folder(folder: Path, config: Mapping[str, Any], **files: Mapping[str, Any]) -> Path:
    folder.mkdir()
    for name, tree in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder


ELSEWHERE = [
    ("attn_implementation", "evil-org/evil-kernel", "no attention of transformers' own"),
    ("_attn_implementation", "evil-org/evil-kernel:name", "no attention of transformers' own"),
    ("_attn_implementation_internal", "kernels-community/flash-attn3", "no attention of transformers' own"),
    ("attn_implementation", {"": "evil-org/evil-kernel"}, "no attention of transformers' own"),
    ("backbone", "hf-hub:evil/x", "would be downloaded"),
    ("use_timm_backbone", True, "nothing is fetched"),
    ("use_pretrained_backbone", True, "nothing is fetched"),
    ("backbone_kwargs", {"model": "evil/x"}, "nothing is fetched"),
    ("use_kernels", True, "nothing is fetched"),
    ("kernel_config", {"a": "evil/b:x"}, "nothing is fetched"),
    ("experts_implementation", "evil-org/evil", "nothing is fetched"),
    ("transformers_weights", "other.safetensors", "nothing is fetched"),
    ("auto_map", {"AutoModel": "code.Network"}, "code of the folder"),
    ("quantization_config", {"load_in_8bit": True}, "quantised"),
]


@pytest.mark.parametrize("depth", ["config", "backbone", "list"])
@pytest.mark.parametrize(("key", "value", "said"), ELSEWHERE)
def test_settings_that_lead_out_of_the_folder_are_refused_at_any_depth(
    tmp_path: Path, key: str, value: Any, said: str, depth: str
) -> None:
    """transformers would fetch code or weights that they name."""
    tree = {
        "config": {**SEGFORMER, key: value},
        "backbone": with_value(UPERNET, f"backbone_config/{key}", value),
        "list": {**UPERNET, "more": [{"deep": {key: value}}]},
    }[depth]
    with pytest.raises(ModelRefused, match=rf"config\.json: .*{said}"):
        read_source(hub_folder(tmp_path / "net", tree), Options())


@pytest.mark.parametrize(
    "backbone",
    [
        {"model_type": "timm_backbone"},
        {"model_type": "detr"},
        {"model_type": [["swin"]]},
        {"model_type": None},
        {},
        None,
        "openmmlab/upernet-swin-tiny",
    ],
)
def test_a_backbone_is_one_of_transformers_own(tmp_path: Path, backbone: Any) -> None:
    """timm's would be fetched by name."""
    with pytest.raises(ModelRefused, match=r"model_type of backbone_config must be one of beit, .*, not "):
        read_source(hub_folder(tmp_path / "net", {**UPERNET, "backbone_config": backbone}), Options())


def test_settings_that_transformers_writes_by_itself_are_taken(tmp_path: Path) -> None:
    """Those of older versions too, and a class that is called backbone; then the processor is missing."""
    config = {
        **UPERNET,
        "_name_or_path": "owner/name",
        "_attn_implementation_autoset": True,
        "attn_implementation": "sdpa",
        "backbone": None,
        "backbone_kwargs": {},
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "label2id": {"backbone": 1, "auto_map": 2},
    }
    with pytest.raises(JobError, match=r"has no preprocessor_config\.json"):
        read_source(hub_folder(tmp_path / "net", config), Options())


def test_a_damaged_hub_folder_is_one_sentence(tmp_path: Path) -> None:
    """The file, the key and the value."""
    with pytest.raises(ModelRefused, match=r"config\.json: model_type must be a name, not \[\[1\]\]"):
        read_source(hub_folder(tmp_path / "a", {"model_type": [[1]]}), Options())
    folder = hub_folder(tmp_path / "b", SEGFORMER, preprocessor_config={"resample": {}})
    with pytest.raises(ModelRefused, match=r"preprocessor_config\.json: resample \{\} has no kernel"):
        read_source(folder, Options())


# The others ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, [["Unet"]], None, 1])
def test_a_damaged_folder_of_smp_is_one_sentence(tmp_path: Path, kind: Any) -> None:
    """The class of its config."""
    with pytest.raises(ModelRefused, match=r"config\.json: _model_class .* is none of DPT"):
        read_source(hub_folder(tmp_path / "net", {"_model_class": kind, "encoder_name": "resnet18"}), Options())
    assert normalisation("resnet18", {"imagenet": 1}) is None


PLANS = {"configurations": {"2d": {"architecture": {"arch_kwargs": {}}}}}


@pytest.mark.parametrize("inherited", [[1], {}, 1, True])
def test_damaged_plans_are_one_sentence(inherited: Any) -> None:
    """Where a name is expected."""
    with pytest.raises(ModelRefused, match=r"plans\.json: inherits_from must be a name"):
        nnunet_plans.configuration(with_value(PLANS, "configurations/2d/inherits_from", inherited), "2d")


@pytest.mark.parametrize("classes", ["conv_op", [1], [[]], {"a": 1}, 3])
def test_classes_of_an_architecture_are_a_list_of_names(classes: Any) -> None:
    """`_kw_requires_import` says which arguments are classes."""
    network = {
        "network_class_name": next(iter(nnunet_plans.NETWORKS)),
        "arch_kwargs": {},
        "_kw_requires_import": classes,
    }
    with pytest.raises(ModelRefused, match=r"plans\.json: _kw_requires_import must be a list of names"):
        nnunet_plans.architecture({"architecture": {**network, "_kw_requires_import": classes}})


@pytest.mark.parametrize("label", [None, [], {}, "1", True, 0.5, [[1]]])
def test_labels_are_numbers(label: Any) -> None:
    """Or lists of numbers."""
    with pytest.raises(ModelRefused, match=r"dataset\.json: a label must be a number"):
        nnunet_plans.labels_of({"labels": {"background": 0, "cell": label}})


# Any source ---------------------------------------------------------------------------------------------------------


def test_what_no_check_names_is_a_sentence_with_the_folder_and_a_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A value of another kind than the importer expects, at a place without a check of its own."""

    def read(source: Path, _: Options) -> Imported:
        return json.loads((source / "config.json").read_text())["sizes"] + 1  # type: ignore[no-any-return]

    monkeypatch.setattr(sources, "IMPORTERS", (Importer("newkind", "a folder", Path.is_dir, read),))
    folder = hub_folder(tmp_path / "net", {"sizes": None})
    with caplog.at_level(logging.DEBUG, logger=sources.__name__), pytest.raises(ModelRefused) as refused:
        read_source(folder, Options())
    said = str(refused.value)
    assert said.startswith(
        f"{folder} is damaged, or holds a setting of a kind that newkind does not write (TypeError: "
    )
    assert "sources.py, line" in said
    assert "Traceback" in caplog.text
    assert isinstance(refused.value.__cause__, TypeError)


@pytest.mark.parametrize("error", [MemoryError(), OSError("the disk is gone"), KeyboardInterrupt(), AssertionError()])
def test_what_is_no_fault_of_a_value_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Memory, files, interrupts and broken promises of our own code pass."""

    def read(*_: Any) -> Imported:
        raise error

    monkeypatch.setattr(sources, "IMPORTERS", (Importer("newkind", "a folder", Path.is_dir, read),))
    with pytest.raises(type(error)):
        read_source(tmp_path, Options())
