"""MONAI bundles: the labels of MONAI's own transforms and inferer, and a sentence for what is not understood."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from foreign_models import differing_share, label_maps, mean_dice_of_four_commands, pictures

from unet_batch.contract import CtWindow, MeanStd, ModelInput, Percentile, Scale, ZScore
from unet_batch.errors import JobError, ModelRefused
from unet_batch.imaging.preprocess import fit
from unet_batch.records import Unit
from unet_batch.spec import TilingSpec
from unet_batch.workbench.draft.allowed import sizes_on
from unet_batch.workbench.importers.imported import Options
from unet_batch.workbench.importers.monai.bundle import read
from unet_batch.workbench.importers.sources import read_source
from unet_batch.workbench.importers.write import ImportReport, write
from unet_batch.worker.loaded import Entry, Loaded, PixelBuffer
from unet_batch.worker.tiles import picture

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

IMAGE = {"keys": "image"}
LOAD = [{"_target_": "LoadImaged", **IMAGE}, {"_target_": "EnsureChannelFirstd", **IMAGE}]
CONFIG: dict[str, Any] = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "side": 48,
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 3,
        "channels": [8, 16],
        "strides": [2],
    },
    "network": "$@network_def.to(@device)",
    "ckpt_path": "$@bundle_root + '/models/model.pt'",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            *LOAD,
            {
                "_target_": "ScaleIntensityRanged",
                **IMAGE,
                "a_min": 0,
                "a_max": 255,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {
                "_target_": "NormalizeIntensityd",
                **IMAGE,
                "subtrahend": [0.5, 0.4, 0.3],
                "divisor": [0.2, 0.25, 0.3],
                "channel_wise": True,
            },
            {"_target_": "EnsureTyped", **IMAGE, "device": "@device"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in glob.glob('*')]",
        "transform": "@preprocessing",
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [32, "@side"],
        "sw_batch_size": 4,
        "overlap": 0.5,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@bundle_root"},
        ],
    },
}
RESIZE = {"_target_": "Resized", **IMAGE, "spatial_size": [48, 32], "mode": "bilinear"}
METADATA = {
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "grass", "2": "sky"}}}}
}


def changed(**settings: Any) -> dict[str, Any]:
    """The configuration with other values; a key `a__b` is a key inside a, None removes."""
    tree = copy.deepcopy(CONFIG)
    for path, value in settings.items():
        *outer, last = path.split("__")
        place = tree
        for step in outer:
            place = place[step]
        place[last] = value
        if value is None:
            del place[last]
    return tree


def preprocessing(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [*LOAD, *({**IMAGE, **step} for step in steps)]}


def postprocessing(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [{"keys": "pred", **step} for step in steps]}


def network(tree: dict[str, Any] = CONFIG) -> Any:
    from monai.networks.nets import UNet

    torch.manual_seed(3)
    return UNet(**{k: v for k, v in tree["network_def"].items() if k != "_target_"}).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network().state_dict(), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path, weights: Path):
    """Makes a bundle with a configuration."""

    def make(tree: dict[str, Any] = CONFIG, *, as_yaml: bool = False) -> Path:
        return bundle_in(tmp_path / "bundle", tree, weights, as_yaml=as_yaml)

    return make


def bundle_in(folder: Path, tree: dict[str, Any], weights: Path, *, as_yaml: bool = False) -> Path:
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    name, text = ("inference.yaml", yaml.safe_dump(tree)) if as_yaml else ("inference.json", json.dumps(tree))
    (folder / "configs" / name).write_text(text)
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    (folder / "models" / "model.pt").write_bytes(weights.read_bytes())
    return folder


def imported(folder: Path, **options: Any) -> ImportReport:
    row, found = read_source(folder, Options(**options))
    allow = bool(options.get("allow_difference"))
    return write(row.name, found, folder.parent / "model.onnx", allow_difference=allow)


def own_labels(tree: dict[str, Any], archive: Path) -> dict[str, np.ndarray]:
    """MONAI's own way with the same configuration: its parser, its transforms and its inferer."""
    from monai.bundle import ConfigParser

    parser = ConfigParser({**tree, "device": "cpu", "postprocessing": {**tree["postprocessing"], "transforms": []}})
    before, inferer, model = (parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "network_def"))
    model.load_state_dict(network(tree).state_dict())
    model.eval()
    steps = [step for step in tree["postprocessing"]["transforms"] if step["_target_"] != "SaveImaged"]
    parser = ConfigParser({"preprocessing": before, "post": {"_target_": "Compose", "transforms": steps}})
    after = parser.get_parsed_content("post")
    found = {}
    for path in sorted(archive.glob("*.png")):
        item = before({"image": str(path)})
        with torch.no_grad():
            item["pred"] = inferer(item["image"][None], model)[0]
        done = after(item)["pred"]
        found[path.name] = np.asarray(done)[0].astype(np.int64).T  # MONAI has the width first
    return found


def test_a_job_gives_the_labels_of_monai(tmp_path, weights):
    """Neither windows nor pictures are square: the network sees the width first, and so does the graph."""
    folder = bundle_in(tmp_path / "bundle", CONFIG, weights)
    archive = pictures(tmp_path / "archive")
    report = imported(folder)
    contract = report.exported.contract
    assert (contract.input.height, contract.input.width) == (48, 32)
    assert contract.output.classes == ("background", "grass", "sky")
    assert report.imported.job == {"tiling": {"overlap": 0.5, "blend": "gaussian", "sigma": 0.125}}
    found = label_maps(folder.parent / "model.onnx", tmp_path / "archive", tmp_path / "out")
    expected = own_labels(CONFIG, tmp_path / "archive")
    assert found.keys() == archive.keys()
    assert min(np.bincount(np.concatenate([labels.ravel() for labels in expected.values()]), minlength=3)) > 0
    assert differing_share(found, expected) <= 1e-4


@pytest.mark.more_models
def test_four_commands_lead_to_overlays_and_a_dice(tmp_path, weights):
    """MONAI's own label maps are the truth."""
    bundle_in(tmp_path / "my-bundle", CONFIG, weights)
    pictures(tmp_path / "pictures")
    dice = mean_dice_of_four_commands(tmp_path, "my-bundle", own_labels(CONFIG, tmp_path / "pictures"))
    assert set(dice) == {"grass", "sky"}
    assert min(dice.values()) >= 0.9999


def test_a_resized_image_is_near_to_monai_and_needs_permission(tmp_path, weights):
    """Pixels stay whole numbers here when they are resized; softmax before the way back is in the graph."""
    tree = changed(
        preprocessing=preprocessing(RESIZE, {"_target_": "ScaleIntensityd"}),
        inferer={"_target_": "SimpleInferer"},
        postprocessing=postprocessing(
            {"_target_": "Activationsd", "softmax": True},
            {"_target_": "Invertd", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False},
            {"_target_": "AsDiscreted", "argmax": True},
        ),
    )
    folder = bundle_in(tmp_path / "bundle", tree, weights)
    pictures(tmp_path / "archive")
    with pytest.raises(ModelRefused, match=r"Resized: pixels .* --allow-difference"):
        imported(folder)
    report = imported(folder, allow_difference=True)
    contract = report.exported.contract
    assert (contract.input.height, contract.input.width, contract.input.fit) == (32, 48, "stretch")
    assert contract.output.activation == "softmax"
    found = label_maps(folder.parent / "model.onnx", tmp_path / "archive", tmp_path / "out")
    share = differing_share(found, own_labels(tree, tmp_path / "archive"))
    assert 0 < share <= 1e-2
    settings, differences = report.imported.job, report.imported.differences
    [size] = sizes_on(str(tmp_path / "archive"), folder.parent / "model.onnx", settings, differences)
    assert size.share == pytest.approx(share, abs=1e-4)  # what is printed is the distance from MONAI


RANGE = {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1}
RULES = [
    ([], Scale()),
    ([RANGE], Scale(scale=1 / 255)),
    ([RANGE | {"clip": True}], CtWindow(center=127.5, width=255)),
    ([RANGE | {"a_min": -160, "a_max": 240, "clip": True}], CtWindow(center=40, width=400)),
    ([{"_target_": "ScaleIntensityd"}], Percentile(lower=0, upper=100)),
    (
        [{"_target_": "ScaleIntensityd", "minv": -1.0, "maxv": 1.0, "channel_wise": True}],
        Percentile(lower=0, upper=100, low=-1, high=1, per_channel=True),
    ),
    (
        [
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "lower": 1,
                "upper": 99,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            }
        ],
        Percentile(lower=1, upper=99),
    ),
    ([{"_target_": "NormalizeIntensityd"}], ZScore()),
    (
        [{"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}],
        ZScore(nonzero=True, per_channel=True),
    ),
    ([{"_target_": "ScaleIntensityd"}, {"_target_": "NormalizeIntensityd"}], ZScore()),
    ([{"_target_": "NormalizeIntensityd", "subtrahend": 127.5, "divisor": 127.5}], Scale(scale=1 / 127.5, offset=-1.0)),
    (
        [RANGE | {"clip": True}, {"_target_": "NormalizeIntensityd", "subtrahend": 0.5, "divisor": 0.5}],
        CtWindow(center=127.5, width=255, low=-1, high=1),
    ),
]


@pytest.mark.parametrize(("steps", "rule"), RULES)
def test_intensity_transforms_are_the_contracts_normalisation(bundle, steps, rule):
    """A table; two steps become one where they can."""
    found = read(bundle(changed(preprocessing=preprocessing(*steps))), Options()).contract.input.normalize
    assert type(found) is type(rule)
    ours, wanted = found.model_dump(), rule.model_dump()
    assert {k: v for k, v in ours.items() if v != pytest.approx(wanted[k])} == {}


@pytest.mark.parametrize(("steps", "rule"), RULES)
def test_the_normalisation_gives_monais_values(steps, rule):
    """Against MONAI's transforms on a picture of every byte value."""
    from monai.bundle import ConfigParser

    from unet_batch.contract import ModelInput
    from unet_batch.imaging.preprocess import fit, normalize

    image = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
    item = {"image": torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))}
    own = [{"keys": "image", **step} for step in steps]
    compose = ConfigParser({"c": {"_target_": "Compose", "transforms": own}}).get_parsed_content("c")
    expected = np.asarray(compose(item)["image"]).transpose(1, 2, 0)
    spec = ModelInput(normalize=rule)
    fitted, geometry = fit(image, spec, tile_hw=None, source_hw=(24, 40))
    assert np.abs(normalize(fitted, geometry, spec, largest=255.0) - expected).max() < 1e-5


def test_mean_and_deviation_by_channel_keep_the_divisor(bundle):
    """ScaleIntensityRange from 0 to 255, clipped, then one mean for each channel: for sources of 8 bits only."""
    found = read(bundle(), Options()).contract.input
    assert isinstance(found.normalize, MeanStd)
    assert (found.normalize.max, found.source_max) == (255, 255)
    assert found.normalize.mean == pytest.approx((0.5, 0.4, 0.3))
    assert found.normalize.std == pytest.approx((0.2, 0.25, 0.3))


EVALUATOR = {"_target_": "SupervisedEvaluator", "inferer": "@inferer", "postprocessing": "@postprocessing"}
REFUSED = [
    (
        changed(preprocessing=preprocessing({"_target_": "Lambdad", "func": "$lambda x: x"})),
        "Lambdad is not understood",
    ),
    (changed(preprocessing=preprocessing({"_target_": "Spacingd", "pixdim": [1, 1]})), "Spacingd is not understood"),
    (
        changed(preprocessing=preprocessing(RANGE | {"a_max": "$max(255, 1)"})),
        "a_max is '[$]max.*': MONAI would run it",
    ),
    (changed(preprocessing=preprocessing(RANGE | {"gamma": 2})), "the argument gamma of ScaleIntensityRanged"),
    (changed(preprocessing=preprocessing({"_target_": "NormalizeIntensityd"}, RANGE)), "after NormalizeIntensityd"),
    (changed(preprocessing=preprocessing(RESIZE | {"mode": "area"})), "not area"),
    (changed(preprocessing={"_target_": "Compose", "transforms": []}), "loads no image"),
    (changed(preprocessing__transforms={"a": 1}), "are no list"),
    (changed(preprocessing="@nowhere"), "which is not in the file"),
    (changed(preprocessing="@preprocessing"), "run in a circle"),
    (changed(inferer={"_target_": "SaliencyInferer"}), "SaliencyInferer is neither"),
    (changed(inferer__roi_size=[-1, 32]), "depends on the image"),
    (changed(inferer__overlap=[0.5, 0.25]), "the same on both axes"),
    (changed(inferer__process_fn="$print"), "process_fn of SlidingWindowInferer is not understood"),
    (changed(network_def___target_="os.system"), "os.system is none of"),
    (changed(network_def___target_="monai.networks.nets.VNet"), "VNet is none of"),
    (changed(network_def__spatial_dims=3), "for volumes"),
    (changed(network_def__act="$__import__('os').system('true')"), "no code of a bundle is run"),
    (changed(network_def__norm={"_target_": "os.system", "command": "true"}), "calls 'os.system'"),
    (changed(network_def__gamma=1), "cannot be built"),
    (changed(network="$torch.nn.Sequential(@network_def, torch.nn.Softmax(1))"), "something other than network_def"),
    (
        changed(postprocessing=postprocessing({"_target_": "Lambdad", "func": "$lambda x: 1 - x"})),
        "Lambdad is not understood",
    ),
    (changed(postprocessing=postprocessing({"_target_": "Activationsd", "other": "$f"})), "the argument other"),
    (changed(network_def__channels=[8, 32]), "do not match the network"),
    (changed(network_def___disabled_=True), "_disabled_ True, which is not understood"),
    (changed(evaluator={"_target_": "EnsembleEvaluator", "networks": ["@network"]}), "evaluator is EnsembleEvaluator"),
    (changed(evaluator={"_target_": "SupervisedEvaluator", "postprocessing": "@postprocessing"}), "not use @inferer"),
    (changed(evaluator={**EVALUATOR, "gamma": 1}), "the argument gamma of evaluator"),
    (changed(dataset__transform="@other"), "transform of dataset is '@other', not @preprocessing"),
    (changed(handlers=[{"_target_": "PostProcessing", "transform": "$f"}]), "the handler PostProcessing may change"),
    (changed(val_handlers=[{"_target_": "scripts.Twist"}]), "val_handlers, entry 1 is scripts.Twist, which is not"),
    (changed(val_handlers=[{"_target_": "monai.handlers.Twist"}]), "the handler monai.handlers.Twist may change masks"),
    (changed(evaluator="@other", other={"_target_": "EnsembleEvaluator"}), "evaluator is EnsembleEvaluator"),
    (changed(evaluator="$make()"), "evaluator is [$]make"),
    (changed(dataset={"_target_": "Dataset", "data": []}), "dataset does not use @preprocessing, so MONAI does not"),
    (
        changed(dataset=None, loader={"_target_": "DataLoader", "dataset": {"_target_": "Dataset", "transform": "@x"}}),
        "transform of loader, dataset is '@x', not @preprocessing",
    ),
    (changed(initialize=["$@network_def.apply(f)"]), "initialize holds the code '[$]@network_def.apply"),
    (changed(more={"a": ["$setattr(@inferer, 'overlap', 0)"]}), "more holds the code .*no code of a bundle is run"),
    (changed(preprocessing=preprocessing({"_target_": "DivisiblePadd", "k": 16})), "only with SimpleInferer"),
    (
        changed(
            inferer={"_target_": "SimpleInferer"}, preprocessing=preprocessing({"_target_": "DivisiblePadd", "k": 3})
        ),
        "a multiple of 2, which the network needs",
    ),
    (
        changed(preprocessing=preprocessing({"_target_": "DivisiblePadd", "k": 4, "method": "end"})),
        "only method symmetric",
    ),
    (changed(preprocessing=preprocessing({"_target_": "DivisiblePadd", "k": 4}, RANGE)), "after DivisiblePadd?"),
    (
        changed(
            postprocessing=postprocessing(
                {"_target_": "AsDiscreted", "argmax": True, "to_onehot": 3},
                {"_target_": "Lambdad", "func": "$lambda x: x[:1]"},
            )
        ),
        "Lambdad after the classes were chosen",
    ),
    (changed(evaluator={"_target_": "SupervisedEvaluator", "inferer": "$f"}), "inferer of evaluator is '[$]f'"),
    (
        changed(evaluator={**EVALUATOR, "prepare_batch": "$f"}),
        "prepare_batch of evaluator",
    ),
    (
        changed(
            postprocessing=postprocessing({"_target_": "Invertd", "transform": "@preprocessing", "post_func": "$f"})
        ),
        "post_func of Invertd is code",
    ),
    (
        changed(postprocessing=postprocessing({"_target_": "CastToTyped", "dtype": "$torch.uint8"})),
        "before the classes are chosen",
    ),
]


@pytest.mark.parametrize(("tree", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_understood_is_named_and_refused(bundle, tree, said):
    """No step and no argument is left out silently."""
    with pytest.raises(ModelRefused, match=said):
        read(bundle(tree), Options())


def test_steps_that_are_not_done_need_permission(bundle):
    """The user may want masks without them."""
    tree = changed()
    tree["postprocessing"]["transforms"].insert(3, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"})
    folder = bundle(tree)
    with pytest.raises(ModelRefused, match="KeepLargestConnectedComponentd is not applied"):
        imported(folder)


@pytest.mark.parametrize("as_yaml", [False, True])
def test_no_code_of_a_bundle_runs(bundle, tmp_path, as_yaml):
    """Each of these runs in MONAI's parser: expressions, and calls as the network, as a step and as a value."""
    planted = tmp_path / "planted"
    command = f"touch {planted}"
    call = {"_target_": "os.system", "command": command}
    hostile = changed(
        imports=[f"$__import__('os').system({command!r})"],
        device=f"$__import__('os').system({command!r})",
        bundle_root=f"$__import__('os').system({command!r})",
        initialize=[f"$__import__('os').system({command!r})"],
    )
    assert read(bundle(hostile, as_yaml=as_yaml), Options()).contract.input.channels == 3
    for place in ("bundle_root", "dataset", "anything"):
        with pytest.raises(ModelRefused, match=f"{place} is os.system, which is not MONAI's"):
            read(bundle({**hostile, place: call}, as_yaml=as_yaml), Options())
    for place in ("network_def", "inferer", "preprocessing", "postprocessing"):
        with pytest.raises(ModelRefused):
            read(bundle({**hostile, place: call}, as_yaml=as_yaml), Options())
        with pytest.raises(ModelRefused):
            read(bundle({**hostile, place: f"$__import__('os').system({command!r})"}, as_yaml=as_yaml), Options())
    with pytest.raises(ModelRefused):
        read(bundle({**hostile, "preprocessing": preprocessing(call)}, as_yaml=as_yaml), Options())
    assert not planted.exists()


def test_weights_that_are_a_program_are_refused(bundle, tmp_path):
    """A pickle that calls a function is not loaded."""
    planted = tmp_path / "planted"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (planted,)

    folder = bundle()
    torch.save({"model": Hostile()}, folder / "models" / "model.pt")
    with pytest.raises(ModelRefused, match="running code"):
        read(folder, Options())
    assert not planted.exists()


SIGMOID = {"_target_": "Activationsd", "sigmoid": True}


@pytest.mark.parametrize(
    ("steps", "outputs", "activation", "threshold", "background"),
    [
        ([{"_target_": "AsDiscreted", "argmax": True}], 3, "logits", 0.5, 0),
        ([SIGMOID, {"_target_": "AsDiscreted", "threshold": 0.3}], 1, "logits", 0.3, None),
        ([{"_target_": "AsDiscreted", "threshold": 0.0}], 1, "logits", 0.5, None),
        ([SIGMOID, {"_target_": "AsDiscreted", "threshold": 0.5}], 3, "sigmoid", 0.5, None),
        ([], 3, "logits", 0.5, 0),
    ],
)
def test_the_steps_after_the_network_say_what_its_values_mean(
    bundle, steps, outputs, activation, threshold, background
):
    """Several independent classes get their sigmoid in the graph."""
    tree = changed(
        postprocessing=postprocessing(*steps), network_def__out_channels=outputs, inferer={"_target_": "SimpleInferer"}
    )
    folder = bundle(tree)
    torch.save(network(tree).state_dict(), folder / "models" / "model.pt")
    found = read(folder, Options())
    output = found.contract.output
    assert (output.activation, output.threshold, output.background) == (activation, threshold, background)
    with torch.no_grad():
        values = found.networks[0](torch.randn(1, 3, 32, 48))
    assert values.shape == (1, outputs, 32, 48)
    assert (activation == "sigmoid") == bool(values.min() >= 0 and values.max() <= 1)
    assert found.any_size


@pytest.mark.parametrize(
    ("resize", "nearest", "said"),
    [
        (RESIZE, False, ["Resized: pixels"]),
        (RESIZE, True, ["Resized: pixels", "Invert takes"]),
        (RESIZE | {"mode": "nearest"}, False, ["Invert takes"]),
    ],
)
def test_differences_of_a_resize_are_said(bundle, resize, nearest, said):
    """Each is a sentence of its own; without --allow-difference none of these is imported."""
    back = {"_target_": "Invertd", "transform": "@preprocessing", "nearest_interp": nearest}
    argmax = {"_target_": "AsDiscreted", "argmax": True}
    tree = changed(
        preprocessing=preprocessing(resize, {"_target_": "ScaleIntensityd"}),
        inferer={"_target_": "SimpleInferer"},
        postprocessing=postprocessing(back, argmax),
    )
    found = read(bundle(tree), Options()).differences
    assert [each.text.startswith(start) for each, start in zip(found, said, strict=True)] == [True] * len(said)


def test_masks_of_the_resized_image_stay_so_without_the_way_back(bundle):
    """The job gets the key for it."""
    tree = changed(
        preprocessing=preprocessing(RESIZE),
        inferer={"_target_": "SimpleInferer"},
        postprocessing=postprocessing({"_target_": "AsDiscreted", "argmax": True}),
    )
    assert read(bundle(tree), Options()).job == {"output": {"geometry": "model"}}


def test_the_words_of_monais_template_are_understood(bundle):
    """MONAI's template for bundles names keys by CommonKeys, and joins its lists by expressions."""
    tree = changed(
        image="$monai.utils.CommonKeys.IMAGE",
        pred="$monai.utils.CommonKeys.PRED",
        num_classes="$len(@labels)",
        labels=["background", "grass", "sky"],
        network_def__out_channels="@num_classes",
        inferer__overlap="$1 / 4",
        inferer__mode="$monai.utils.BlendMode.GAUSSIAN",
        begin=[{"_target_": "LoadImaged", "keys": "@image"}, {"_target_": "EnsureChannelFirstd", "keys": "@image"}],
        transforms="$@begin + [@more]",
        more={"_target_": "ScaleIntensityd", "keys": ["@image"], "_disabled_": False},
        preprocessing={"_target_": "Compose", "transforms": "$@transforms"},
    )
    for step in tree["postprocessing"]["transforms"]:
        step["keys"] = "@pred"
    found = read(bundle(tree), Options())
    assert found.contract.output.classes == ("background", "grass", "sky")
    assert found.contract.input.normalize == Percentile(lower=0, upper=100)
    assert found.job == {"tiling": {"overlap": 0.25, "blend": "gaussian", "sigma": 0.125}}


def test_the_published_bundle_for_pictures_is_read(tmp_path):
    """The steps and spellings of the zoo's endoscopic_tool_segmentation, with a smaller encoder."""
    from monai.networks.nets import FlexibleUNet

    definition = {"in_channels": 3, "out_channels": 2, "backbone": "resnet10", "spatial_dims": 2, "pretrained": False,
                  "is_pad": False, "pre_conv": None}  # fmt: skip
    torch.manual_seed(3)
    torch.save(FlexibleUNet(**definition).state_dict(), tmp_path / "model.pt")
    tree = changed(
        network_def={"_target_": "FlexibleUNet", **definition},
        preprocessing={"_target_": "Compose", "transforms": [
            *LOAD[:1], {**LOAD[1], "channel_dim": -1}, RESIZE | {"mode": ["bilinear"]},
            {"_target_": "ScaleIntensityd", **IMAGE},
        ]},
        inferer={"_target_": "SimpleInferer"},
        postprocessing=postprocessing(
            {"_target_": "Invertd", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False},
            {"_target_": "AsDiscreted", "argmax": True, "to_onehot": 2},
            {"_target_": "Lambdad", "func": "$lambda x : x[1:]"},
            {"_target_": "SaveImaged", "scale": 255},
        ),
        evaluator={"_target_": "SupervisedEvaluator", "network": "@network", "inferer": "@inferer",
                   "postprocessing": "@postprocessing", "amp": True},
        initialize=["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator) if True else None"],
    )  # fmt: skip
    found = read(bundle_in(tmp_path / "bundle", tree, tmp_path / "model.pt"), Options())
    assert (found.contract.input.height, found.contract.input.width) == (32, 48)
    assert found.contract.input.fit == "stretch"
    assert len(found.differences) == 1  # resized pixels are rounded
    assert "half precision" in found.notes[0]


@pytest.mark.parametrize(
    ("step", "mode"),
    [
        ({"k": 16}, "constant"),
        ({"k": [16, 16], "mode": "reflect"}, "reflect"),
        ({"k": 8, "mode": "edge"}, "edge"),
        ({"k": 8, "value": 0.5}, "constant"),
    ],
)
def test_a_padded_picture_is_monais(bundle, step, mode):
    """The network's input, value by value."""
    from monai import transforms

    tree = changed(
        preprocessing=preprocessing(RANGE, {"_target_": "DivisiblePadd", **step}), inferer={"_target_": "SimpleInferer"}
    )
    spec = read(bundle(tree), Options()).contract.input
    assert (spec.padding, spec.multiple) == (mode, 8 if step["k"] == 8 else 16)
    pixels_hwc = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    values = {key: value for key, value in step.items() if key != "k"}
    expected = transforms.DivisiblePad(step["k"], **values)(np.moveaxis(pixels_hwc / np.float32(255), 2, 0))
    assert np.abs(network_input(spec, pixels_hwc) - np.moveaxis(np.asarray(expected), 0, 2)).max() < 1e-6


def network_input(spec: ModelInput, pixels_hwc: np.ndarray) -> np.ndarray:
    """What a job gives to a network of any size for one picture."""
    model = SimpleNamespace(
        tile_hw=None, contract=SimpleNamespace(input=spec, output=SimpleNamespace(margin=0, classifies=False))
    )
    content, geometry = fit(pixels_hwc, spec, tile_hw=None, source_hw=pixels_hwc.shape[:2])
    buffer = PixelBuffer()
    entry = Entry(0, 0, 1, *pixels_hwc.shape[:2], content.dtype.str, content.shape, buffer.add(content), geometry, 255)
    loaded = Loaded(Unit("unit", "all", "images", ()), (entry,), buffer.joined())
    page = picture(loaded, entry, geometry, model, TilingSpec(), largest_side=None)
    [box] = page.boxes
    return page.tile(box)


@pytest.mark.parametrize("name", ["SwinUNETR", "UNETR"])
def test_a_package_that_a_network_needs_is_named_at_once(bundle, monkeypatch, name):
    """MONAI alone fails in the middle of the export."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == "einops" else found(each))
    definition = {"_target_": name, "spatial_dims": 2, "in_channels": 3, "out_channels": 3}
    with pytest.raises(JobError, match="needs the package einops: run `pip install einops`"):
        read(bundle(changed(network_def=definition)), Options())


OTHER_NETWORKS = {
    "FlexibleUNet": ({"backbone": "resnet10"}, 32),
    "SwinUNETR": ({"feature_size": 12, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}, 32),
    "BasicUNet": ({"features": [4, 4, 8, 8, 8, 4]}, 16),
    "AttentionUnet": ({"channels": [4, 8, 8], "strides": [2, 2]}, 4),
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, 4),
    "DynUNet": (
        {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
        4,
    ),
}


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_other_networks_of_monai_are_built_with_their_weights(tmp_path, name):
    """The scores of MONAI's own network, on pictures whose sides are the least that it takes."""
    from monai.networks import nets

    if name == "SwinUNETR":
        pytest.importorskip("einops")
    arguments, multiple = OTHER_NETWORKS[name]
    definition = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, **arguments}
    torch.manual_seed(3)
    own = getattr(nets, name)(**definition).eval()
    torch.save(own.state_dict(), tmp_path / "model.pt")
    tree = changed(network_def={"_target_": name, **definition}, inferer={"_target_": "SimpleInferer"})
    found = read(bundle_in(tmp_path / "bundle", tree, tmp_path / "model.pt"), Options())
    assert found.contract.input.multiple == multiple
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 2 * multiple, 3 * multiple), np.float32))
    with torch.no_grad():
        expected = own(image.transpose(2, 3)).transpose(2, 3)
        torch.testing.assert_close(found.networks[0](image), expected)


def test_the_weights_that_a_bundle_names_are_taken(bundle, weights):
    """Inside of the bundle only; code that joins paths is compared, not evaluated."""
    folder = bundle(changed(ckpt_path="$@bundle_root + '/models/best.pt'"))
    best = torch.load(weights, weights_only=True)
    torch.save(
        {key: value + 1 if value.is_floating_point() else value for key, value in best.items()},
        folder / "models" / "best.pt",
    )
    expected = Options(weights=folder / "models" / "best.pt")
    assert read(folder, Options()).weights[0].sha256 == read(folder, expected).weights[0].sha256
    for outside in ("../model.pt", "/etc/model.pt", "$@bundle_root + '/../model.pt'"):
        with pytest.raises(JobError, match="names no file of"):
            read(bundle(changed(ckpt_path=outside)), Options())
    two = [{"_target_": "CheckpointLoader", "load_path": f"./models/{name}.pt"} for name in ("best", "model")]
    with pytest.raises(JobError, match=r"names two files of weights, model.pt and best.pt"):
        read(bundle(changed(handlers=two)), Options())


def test_weights_elsewhere_are_asked_for(bundle, weights):
    """A name of a file that is not in the bundle."""
    loader = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/best.pt'"}
    with pytest.raises(JobError, match="load_path of CheckpointLoader"):
        read(bundle(changed(handlers=[{"_target_": "StatsHandler"}, loader])), Options())
    assert read(bundle(changed(handlers=[loader | {"load_path": "$@ckpt_path"}])), Options()).weights
    folder = bundle(changed(ckpt_path="$@bundle_root + '/models/best.pt'"))
    with pytest.raises(JobError, match="--weights"):
        read(folder, Options())
    assert read(folder, Options(weights=weights)).weights[0].sha256
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(JobError, match=r"has no models/model.pt"):
        read(bundle_without_weights(folder), Options())


def bundle_without_weights(folder: Path) -> Path:
    (folder / "configs" / "inference.json").write_text(json.dumps(CONFIG))
    return folder
