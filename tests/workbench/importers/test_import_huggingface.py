"""Folders of Hugging Face's transformers: its label maps, its preprocessing, and what is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from foreign_models import differing_share, label_maps, mean_dice_of_four_commands, pictures
from PIL import Image

from unet_batch.contract import MeanStd, Scale
from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.export.arguments import IMAGENET
from unet_batch.workbench.importers.folder import offline, package
from unet_batch.workbench.importers.imported import Imported, Options
from unet_batch.workbench.importers.sources import read_source
from unet_batch.workbench.importers.write import write

torch = pytest.importorskip("torch")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

FEW = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "num_attention_heads": [1, 1]}
SMALL = {**FEW, "sr_ratios": [4, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return package("transformers", "transformers")


@pytest.fixture(scope="module")
def segformer(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SegFormer with its image processor, as transformers saves them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segformer") / "model"
    names = {0: "background", 1: "road", 2: "sky"}
    config = transformers.SegformerConfig(**SMALL, decoder_hidden_size=16, id2label=names)
    saved(transformers.SegformerForSemanticSegmentation(config), folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def upernet(transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UperNet, whose labels were reduced: it has no background."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("upernet") / "model"
    stages = ["stage1", "stage2"]
    backbone = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], out_features=stages)
    names = {0: "wall", 1: "road", 2: "sky"}
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, pool_scales=[1, 3, 6], use_auxiliary_head=False, id2label=names
    )
    saved(transformers.UperNetForSemanticSegmentation(config), folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=True).save_pretrained(
        folder
    )
    return folder


def saved(network: Any, folder: Path) -> None:
    """Save a network whose random weights are large enough for every class to appear."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    network.save_pretrained(folder)


def changed(folder: Path, copy: Path, file: str, **settings: object) -> Path:
    """A copy of a folder with other settings in one of its files; None removes a key."""
    shutil.copytree(folder, copy)
    tree = {**json.loads((copy / file).read_text()), **settings}
    (copy / file).write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    return copy


def own_labels(network: Any, processor: Any, archive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' own way: its processor, its network, its post-processing."""
    found = {}
    for name, image in archive.items():
        with torch.no_grad():
            outputs = network(**processor(images=Image.fromarray(image), return_tensors="pt"))
        found[name] = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])[0].numpy()
    return found


@pytest.mark.parametrize("which", ["segformer", "upernet"])
def test_a_job_gives_the_labels_of_transformers(transformers, request, tmp_path, which):
    """SegFormer's logits have a quarter of the sides; UperNet pools to 3x3 and 6x6 values."""
    folder = request.getfixturevalue(which)
    row, found = read_source(folder, Options())
    report = write(row.name, found, tmp_path / "m.onnx")
    archive = pictures(tmp_path / "archive")
    kind = {
        "segformer": transformers.SegformerForSemanticSegmentation,
        "upernet": transformers.UperNetForSemanticSegmentation,
    }[which]
    network = kind.from_pretrained(folder).eval()
    expected = own_labels(network, transformers.SegformerImageProcessorPil.from_pretrained(folder), archive)
    labels = label_maps(tmp_path / "m.onnx", tmp_path / "archive", tmp_path / "out")
    counts = np.bincount(np.concatenate([labels.ravel() for labels in expected.values()]), minlength=3)
    assert np.count_nonzero(counts) > 1
    assert differing_share(labels, expected) <= 1e-4
    by_torchvision = own_labels(network, transformers.SegformerImageProcessor.from_pretrained(folder), archive)
    assert differing_share(labels, by_torchvision) <= 0.01  # one gray level in the resized picture
    assert any("torchvision" in note for note in report.notes)


@pytest.mark.more_models
def test_four_commands_lead_to_overlays_and_a_dice(transformers, segformer, tmp_path):
    """The label maps of transformers, with its processor of Pillow, are the truth."""
    shutil.copytree(segformer, tmp_path / "my-segformer")
    archive = pictures(tmp_path / "pictures")
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(segformer).eval()
    truth = own_labels(network, transformers.SegformerImageProcessorPil.from_pretrained(segformer), archive)
    dice = mean_dice_of_four_commands(tmp_path, "my-segformer", truth)
    assert dice
    assert min(dice.values()) >= 0.999


def test_the_contract_is_that_of_the_folder(segformer):
    """Class names in the order of their channels, and the sizes of the processor."""
    _, found = read_source(segformer, Options())
    given, output = found.contract.input, found.contract.output
    assert (given.fit, given.height, given.width, given.kernel) == ("stretch", 64, 48, "pil_bilinear_u8")
    assert (given.normalize, given.color) == (IMAGENET, "rgb")
    assert (output.classes, output.background, output.activation) == (("background", "road", "sky"), 0, "logits")
    assert {fact.how for fact in found.facts} == {"read", "default"}


def background(source: Path) -> tuple[int | None, str]:
    """The background class, and where it was read."""
    _, found = read_source(source, Options())
    return found.contract.output.background, {f.field: f.source for f in found.facts}["output.background"]


def test_a_size_of_which_the_mask_is_no_whole_share_is_named(segformer, tmp_path):
    """SegFormer's mask has a quarter of the sides; the sentence says which size is the nearest that works."""
    odd = changed(segformer, tmp_path / "odd", "preprocessor_config.json", size={"height": 66, "width": 48})
    with pytest.raises(ModelRefused, match=r"become 66x48, .* multiples of 4: give --input 3x68x48"):
        read_source(odd, Options())
    assert read_source(odd, Options(input_chw=(3, 68, 48)))[1].contract.input.height == 68


def test_reduced_labels_leave_no_background(upernet):
    """Label 0 of the training has no channel."""
    assert background(upernet) == (None, "preprocessor_config.json: do_reduce_labels")


def test_older_files_call_it_reduce_labels(segformer, tmp_path):
    """And have one number for the size."""
    old = {"reduce_labels": True, "do_reduce_labels": None, "size": 96, "image_processor_type": None}
    copy = changed(
        segformer,
        tmp_path / "old",
        "preprocessor_config.json",
        **old,
        feature_extractor_type="SegformerFeatureExtractor",
    )
    assert background(copy)[0] is None
    assert read_source(copy, Options())[1].contract.input.height == 96


def test_a_first_class_that_is_an_object_is_no_background(segformer, tmp_path):
    """Its pixels count like those of the others; without names, class 0 is guessed to be the background."""
    named = changed(segformer, tmp_path / "named", "config.json", id2label={"0": "wall", "1": "a", "2": "b"})
    assert background(named) == (None, "the name of the first class")
    unnamed = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert background(changed(segformer, tmp_path / "unnamed", "config.json", id2label=unnamed))[0] == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_normalize": False}, Scale(scale=1 / 255)),
        ({"do_normalize": False, "do_rescale": False}, Scale(scale=1.0)),
        ({"do_rescale": False, "image_mean": [120.0], "image_std": [60.0]}, MeanStd(mean=(120.0,), std=(60.0,), max=1)),
        ({"rescale_factor": 1 / 128}, MeanStd(mean=IMAGENET.mean, std=IMAGENET.std, max=128)),
    ],
)
def test_every_rescaling_is_a_normalisation(segformer, tmp_path, settings, expected):
    """In transformers' order: multiply, subtract, divide."""
    copy = changed(segformer, tmp_path / "net", "preprocessor_config.json", **settings)
    assert read_source(copy, Options())[1].contract.input.normalize == expected


def test_pictures_that_are_not_resized_are_tiled(segformer, tmp_path):
    """The network takes any size."""
    copy = changed(segformer, tmp_path / "net", "preprocessor_config.json", do_resize=False)
    contract = read_source(copy, Options())[1].contract
    assert (contract.input.fit, contract.input.height) == ("tile", None)


def test_a_step_that_is_null_is_not_done(transformers, segformer, tmp_path):
    """As in transformers; another setting that is null is named."""
    copy = changed(segformer, tmp_path / "net", "preprocessor_config.json")
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    steps = {"do_resize": None, "do_rescale": None, "do_normalize": None}
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, **steps}))
    contract = read_source(copy, Options())[1].contract
    assert (contract.input.fit, contract.input.normalize) == ("tile", Scale(scale=1.0))
    image = np.full((40, 50, 3), 200, np.uint8)
    taken = transformers.SegformerImageProcessorPil.from_pretrained(copy)(Image.fromarray(image), return_tensors="pt")
    assert (tuple(taken["pixel_values"].shape[2:]), float(taken["pixel_values"].max())) == ((40, 50), 200.0)
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": None}))
    with pytest.raises(ModelRefused, match="image_mean must be a list of numbers, not None"):
        read_source(copy, Options())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"shortest_edge": 512}}, "does not stretch pictures"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_pad": True, "do_thumbnail": True}, "do_pad, do_thumbnail"),
        ({"resample": 3}, "bicubic has no kernel"),
        ({"resample": 0}, "nearest has no kernel"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor is not known"),
        ({"auto_map": {"AutoImageProcessor": "code.Processor"}}, "code of the folder"),
        ({"image_mean": ["os.system"]}, "image_mean must be a list of numbers"),
        ({"do_resize": "yes"}, "do_resize must be true or false"),
    ],
)
def test_preprocessing_that_no_contract_describes_is_refused_by_name(segformer, tmp_path, settings, said):
    """Nothing is skipped."""
    with pytest.raises(ModelRefused, match=said):
        read_source(changed(segformer, tmp_path / "net", "preprocessor_config.json", **settings), Options())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "mask2former"}, "masks of queries"),
        ({"model_type": "bert"}, "model_type 'bert' is none of segformer, upernet"),
        ({"architectures": ["SegformerForImageClassification"]}, "returns no masks"),
        ({"auto_map": {"AutoModel": "code.Network"}}, "code of the folder"),
        ({"backbone": "owner/network"}, "would be downloaded"),
        ({"decoder_hidden_size": 24}, "other shapes for"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised"),
        ({"hidden_sizes": "os.system"}, "transformers cannot load the network"),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused(segformer, tmp_path, monkeypatch, settings, said):
    """A file of code in the folder is not imported."""
    monkeypatch.chdir(tmp_path)
    copy = changed(segformer, tmp_path / "net", "config.json", **settings)
    (copy / "code.py").write_text("open('planted', 'w')")
    with pytest.raises(ModelRefused, match=said):
        read_source(copy, Options())
    assert not (tmp_path / "planted").exists()


@pytest.fixture
def looked_up(monkeypatch) -> list[object]:
    """Hosts and addresses that something looks up or connects to: none is reached."""
    seen: list[object] = []

    def spy(*where: object, **_: object) -> None:
        seen.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", spy)
    monkeypatch.setattr(socket.socket, "connect", spy)
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "evil-org/evil-kernel"},
        {"_attn_implementation": "evil-org/evil-kernel"},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x"}},
        {"backbone_config": {"model_type": "detr", "backbone": "resnet50", "use_pretrained_backbone": True}},
    ],
)
def test_no_setting_of_a_folder_reaches_the_network(upernet, tmp_path, looked_up, settings):
    """Neither a kernel of a hub nor a backbone of timm is looked for."""
    with pytest.raises(ModelRefused):
        read_source(changed(upernet, tmp_path / "net", "config.json", **settings), Options())
    assert looked_up == []


def test_an_import_is_offline_and_its_attention_is_eager(upernet, tmp_path, looked_up, monkeypatch):
    """Also where a setting that is not known would lead to a request: the hub's client raises before it asks."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = changed(upernet, tmp_path / "net", "config.json", attn_implementation="flash_attention_2")
    for options in (Options(), Options(weights=weights_of(folder, tmp_path))):
        network = read_source(folder, options)[1].networks[0].network
        assert {part.config._attn_implementation for part in (network, network.backbone)} == {"eager"}
    with offline(), pytest.raises(OfflineModeIsEnabled):
        get_session().get("https://hub.invalid/file")
    assert constants.HF_HUB_OFFLINE is False
    assert looked_up == []
    with pytest.raises(Exception, match="no network in this test"):  # without it, the client would ask
        get_session().get("https://hub.invalid/file")
    assert looked_up != []


def weights_of(folder: Path, out: Path) -> Path:
    """The weights of a folder as a state dict of a training loop."""
    network = read_source(folder, Options())[1].networks[0]
    torch.save({key.removeprefix("network."): value for key, value in network.state_dict().items()}, out / "w.pth")
    return out / "w.pth"


def test_a_pickle_with_code_in_place_of_weights_runs_nothing(segformer, tmp_path):
    """Weights are read as plain tensors."""

    class Plant:
        def __reduce__(self):
            return Path.touch, (tmp_path / "planted",)

    copy = changed(segformer, tmp_path / "net", "config.json")
    (copy / "model.safetensors").unlink()
    torch.save({"decode_head.classifier.bias": Plant()}, copy / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="cannot load the network"):
        read_source(copy, Options())
    assert not (tmp_path / "planted").exists()


def test_a_folder_without_a_processor_needs_the_normalisation(segformer, tmp_path):
    """UperNet's save_pretrained writes none."""
    copy = changed(segformer, tmp_path / "net", "config.json")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(JobError, match=r"preprocessor_config\.json.*--normalize"):
        read_source(copy, Options())
    found: Imported = read_source(copy, Options(normalize="imagenet", fit="stretch", input_chw=(3, 64, 64)))[1]
    assert (found.contract.input.fit, found.contract.input.height) == ("stretch", 64)


def test_other_weights_replace_those_of_the_folder(segformer, tmp_path):
    """A state dict of a training loop, loaded strictly."""
    _, found = read_source(segformer, Options())
    tensors = {key.removeprefix("network."): value + 1 for key, value in found.networks[0].state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    _, other = read_source(segformer, Options(weights=tmp_path / "w.pth"))
    assert not torch.equal(found.networks[0](torch.ones(1, 3, 64, 48)), other.networks[0](torch.ones(1, 3, 64, 48)))
    del tensors["decode_head.classifier.bias"]
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ModelRefused, match="missing: decode_head"):
        read_source(segformer, Options(weights=tmp_path / "w.pth"))
