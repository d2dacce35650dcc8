"""Folders of segmentation_models_pytorch: its masks, its preprocessing, and a sentence for what no contract says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from foreign_models import differing_share, label_maps, pictures

from unet_batch.contract import MeanStd, ModelOutput
from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.export.arguments import IMAGENET
from unet_batch.workbench.export.check import random_images
from unet_batch.workbench.export.network import examine
from unet_batch.workbench.importers.folder import package
from unet_batch.workbench.importers.imported import Options
from unet_batch.workbench.importers.smp_encoders import DPN, HALF, normalisation
from unet_batch.workbench.importers.sources import read_source
from unet_batch.workbench.importers.wrappers import with_exact_pooling
from unet_batch.workbench.importers.write import ImportReport, write

torch = pytest.importorskip("torch")
if importlib.util.find_spec("segmentation_models_pytorch") is None:  # importing it may need `package`
    pytest.skip("segmentation_models_pytorch is not installed", allow_module_level=True)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def smp() -> ModuleType:
    return package("segmentation_models_pytorch", "segmentation-models-pytorch")


@pytest.fixture(scope="module")
def folder(smp: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Unet as SMP saves it, said to have begun with ImageNet's weights (which SMP would download)."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("smp") / "model"
    smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, classes=3, decoder_channels=(16, 8, 8)).save_pretrained(
        path
    )
    return changed(path, path, encoder_weights="imagenet")


@pytest.fixture(scope="module")
def imported(folder: Path) -> tuple[ImportReport, Path]:
    """The folder as an ONNX file, by its defaults."""
    out = folder.parent / "smp.onnx"
    row, found = read_source(folder, Options(input_chw=(3, 64, 64)))
    return write(row.name, found, out), out


def changed(folder: Path, copy: Path, **settings: object) -> Path:
    """A copy of a folder with other settings in its config."""
    if copy != folder:
        shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **settings}))
    return copy


def own_labels(smp: ModuleType, folder: Path, archive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SMP's own way: from_pretrained, preprocess_input, argmax."""
    network = smp.from_pretrained(str(folder)).eval()
    preprocess = smp.encoders._preprocessing.preprocess_input
    found = {}
    for name, image in archive.items():
        ready = preprocess(image, mean=MEAN, std=STD, input_space="RGB", input_range=[0, 1])
        with torch.no_grad():
            logits = network(torch.from_numpy(ready.transpose(2, 0, 1)[None].astype(np.float32)))
        found[name] = logits.argmax(1)[0].numpy()
    return found


def test_a_job_gives_the_labels_of_smp(smp, folder, imported, tmp_path):
    """At odd sizes too: SMP's Unet takes any, and so does the file."""
    archive = pictures(tmp_path / "archive")
    changed(folder, tmp_path / "offline", encoder_weights=None)  # SMP would download ImageNet's weights
    expected = own_labels(smp, tmp_path / "offline", archive)
    found = label_maps(imported[1], tmp_path / "archive", tmp_path / "out")
    assert min(np.bincount(np.concatenate([labels.ravel() for labels in expected.values()]), minlength=3)) > 0
    assert differing_share(found, expected) <= 1e-4


def test_the_contract_says_where_each_setting_comes_from(imported):
    """Read in the folder, SMP's default, or guessed."""
    report, out = imported
    contract = report.exported.contract
    assert (contract.input.normalize, contract.input.multiple, contract.input.color) == (IMAGENET, 1, "rgb")
    assert contract.output.classes == ("background", "class_1", "class_2")
    how = {fact.field: fact.how for fact in report.imported.facts}
    assert (how["input.normalize"], how["output.activation"], how["output.classes"]) == ("default", "read", "guessed")
    assert out.with_suffix(".yaml").exists()
    assert str(out.parent) not in out.read_bytes().decode("latin-1")


def test_a_network_trained_from_scratch_needs_its_normalisation(folder, tmp_path):
    """SMP knows none for it either."""
    source = changed(folder, tmp_path / "scratch", encoder_weights=None)
    with pytest.raises(JobError, match=r"trained from scratch.*--normalize"):
        read_source(source, Options())
    _, found = read_source(source, Options(normalize="unit"))
    assert {fact.field: fact.how for fact in found.facts}["input.normalize"] == "given"


def test_an_input_of_other_channels_is_refused(folder):
    """The network's first convolution decides, not the option."""
    with pytest.raises(JobError, match=r"--input says 1 channel\(s\), but the model takes 3"):
        read_source(folder, Options(input_chw=(1, 64, 64)))


@pytest.mark.parametrize(
    ("saved", "given", "meaning"),
    [
        ("softmax", None, "softmax"),
        ("softmax2d", None, "softmax"),
        ("sigmoid", None, "sigmoid"),
        ("logsoftmax", None, "logits"),
        ("argmax2d", None, "labels"),
        (None, "sigmoid", "sigmoid"),
    ],
)
def test_activations_of_smp_have_their_meaning(folder, tmp_path, saved, given, meaning):
    """--activation sigmoid over logits adds a Sigmoid: classes that may overlap, trained with logits."""
    source = changed(folder, tmp_path / "net", activation=saved)
    _, found = read_source(source, Options(activation=given))
    assert found.contract.output.activation == meaning
    assert (found.contract.output.background is None) == (meaning == "sigmoid")
    with torch.no_grad():
        values = found.networks[0](torch.randn(1, 3, 64, 64))
    assert values.shape[1:] == ((64, 64) if meaning == "labels" else (3, 64, 64))
    assert (meaning in ("softmax", "sigmoid")) == bool(values.min() >= 0 and values.max() <= 1)


@pytest.mark.parametrize(("name", "multiple"), [("PSPNet", 8), ("DeepLabV3Plus", 16), ("FPN", 32)])
def test_networks_that_need_a_multiple_are_padded_to_it(smp, name, multiple):
    """SMP's check of the size is not in the graph, so the export finds the multiple by running the network."""
    network = with_exact_pooling(getattr(smp, name)("resnet18", encoder_weights=None, classes=2).eval())
    assert examine(network, random_images(2, 3, (128, 128), seed=0), ModelOutput()).multiple == multiple


@pytest.mark.parametrize("name", ["tanh", "clamp", "argmax", "relu", 3])
def test_an_activation_that_no_contract_describes_is_refused(folder, tmp_path, name):
    """`argmax` without a dimension runs over the whole batch."""
    with pytest.raises(ModelRefused, match="activation"):
        read_source(changed(folder, tmp_path / "net", activation=name), Options())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"_model_class": "from_pretrained"}, "_model_class 'from_pretrained' is none of"),
        ({"_model_class": "os.system"}, "_model_class 'os.system' is none of"),
        ({"encoder_name": "tu-hf-hub:owner/network"}, "is no name of an encoder"),
        ({"command": "touch planted"}, "has no argument command"),
        ({"encoder_name": "resnet19"}, "cannot be built with these arguments"),
        ({"classes": 4}, "do not match the network"),
        ({"classes": "3"}, "classes must be a positive number"),
    ],
)
def test_a_folder_names_networks_of_smp_only(folder, tmp_path, monkeypatch, settings, said):
    """A hostile config starts nothing and downloads nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRefused, match=said):
        read_source(changed(folder, tmp_path / "net", **settings), Options())
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_pickle_with_code_in_place_of_weights_runs_nothing(folder, tmp_path):
    """Weights are read as plain tensors."""

    class Plant:
        def __reduce__(self):
            return Path.touch, (tmp_path / "planted",)

    source = changed(folder, tmp_path / "net")
    (source / "model.safetensors").unlink()
    torch.save({"encoder.conv1.weight": Plant()}, source / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="only be read by running code"):
        read_source(source, Options())
    assert not (tmp_path / "planted").exists()


def test_every_encoder_of_smp_has_a_normalisation(smp):
    """With every set of pretrained weights that SMP offers."""
    offered = [(n, w) for n, entry in smp.encoders.encoders.items() for w in entry["pretrained_settings"]]
    assert len(offered) > 76
    assert [pair for pair in offered if normalisation(*pair) is None] == []


@pytest.mark.parametrize(
    ("smp_name", "timm_name"),
    [
        ("timm-tf_efficientnet_lite0 imagenet", "tf_efficientnet_lite0"),
        ("timm-efficientnet-b0 advprop", "tf_efficientnet_b0.ap_in1k"),
        ("timm-efficientnet-b0 noisy-student", "tf_efficientnet_b0.ns_jft_in1k"),
        ("timm-skresnet18 imagenet", "skresnet18"),
        ("inceptionv4 imagenet", "inception_v4"),
        ("inceptionresnetv2 imagenet", "inception_resnet_v2"),
        ("xception imagenet", "legacy_xception"),
        ("densenet121 imagenet", "densenet121"),
        ("senet154 imagenet", "legacy_senet154"),
        ("vgg16_bn imagenet", "vgg16_bn"),
        ("mobilenet_v2 imagenet", "mobilenetv2_100"),
    ],
)
def test_the_table_agrees_with_timm(smp, smp_name, timm_name):
    """Which holds the same published weights with the normalisation that they were trained with."""
    assert normalisation(*smp_name.split()) == normalisation(f"tu-{timm_name}", True)


def test_dpn_is_normalised_by_bytes():
    """Mean 124, 117, 104 and a factor of 0.0167 (pretrainedmodels), in [0, 1] here."""
    assert normalisation("dpn68", "imagenet") == DPN
    assert normalisation("dpn68", "imagenet+background") is None
    assert normalisation("efficientnet-b3", "advprop") == HALF
    assert isinstance(normalisation("tu-resnet18", True), MeanStd)
    assert normalisation("tu-resnet18", None) is None
