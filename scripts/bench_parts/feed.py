"""What the feed costs on one thread: decoding, resizing and encoding, by kind of picture, and by other libraries.

scripts/bench feed                                    everything
scripts/bench feed --images 100 --only stages,masks   less of it

stages     milliseconds of processor time per picture, by stage of the package: JPEG, PNG, and TIFF of 16 bits
decoders   this package's pixels against those of other libraries: milliseconds, and how many samples differ
resizers   the same for the kernels `pil_bilinear_u8` and `torch_bilinear`, 512² to 256²
masks      runs, boxes and COCO RLE of masks of several sizes, against pycocotools
reduced    labels of a trained U-Net with `input.reduced_jpeg` against those without (needs PyTorch, once)

Variants run in turn, picture by picture; figures are medians. Libraries that are not installed are left out:
`pip install simplejpeg PyTurboJPEG opencv-python-headless kornia-rs cykooz.resizer` brings those that were tried.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import feed_libraries
import numpy as np
import numpy.typing as npt
import photos
from limit import bench_job
from PIL import Image
from pycocotools import mask as coco

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import decode
from unet_batch.imaging.masks import runs_by_label
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import fit, normalize
from unet_batch.imaging.resize import resize
from unet_batch.limits_spec import LimitsSpec
from unet_batch.planning.prepare import prepare
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device

PARTS = ("stages", "decoders", "resizers", "masks", "reduced")
STAGES = ("decode", "fit", "normalize", "encode")
JPEGS = 2000
"""As many as the other parts of the benchmark have; the U-Net of `reduced` is trained on them."""
SIDE_PX = 256
LIMITS = LimitsSpec()
FULL = ModelInput(fit="tile")
"""Pictures at their own size, red, green and blue."""
MASK_SIDES = (256, 1024, 4096)

Work = Callable[[], Any]


def main(arguments: Sequence[str], *, bench: Path, model: Path) -> None:
    """The tables that the arguments ask for, then one JSON line. bench: folder of pictures. model: costs nothing."""
    parser = argparse.ArgumentParser(
        "scripts/bench feed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="pictures of each kind (default 200)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    args = parser.parse_args(arguments)
    wanted = args.only.split(",")
    jpegs = Path(photos.make(bench, JPEGS)["folder"])
    folders = {"jpeg": jpegs}
    if {"stages", "decoders"} & set(wanted):
        folders |= {kind: Path(photos.make(bench, args.images, kind)["folder"]) for kind in ("png", "tiff")}
    pictures = {kind: [path.read_bytes() for path in some(folder, args.images)] for kind, folder in folders.items()}
    found: dict[str, Any] = {"images": args.images}
    if "stages" in wanted:
        found["stages"] = stages(pictures, folders, model)
    if "decoders" in wanted:
        found["decoders"] = decoders(pictures)
    if "resizers" in wanted:
        found["resizers"] = resizers(pictures["jpeg"])
    if "masks" in wanted:
        found["masks"] = masks()
    if "reduced" in wanted:
        found["reduced"] = reduced(jpegs, model.with_name("shapes.onnx"), args.images)
    print(json.dumps(found))


def some(folder: Path, count: int) -> list[Path]:
    """Pictures from all over a folder."""
    names = sorted(folder.iterdir())
    return names[:: max(1, len(names) // count)][:count]


def timed(times: dict[str, list[float]], name: str, work: Work) -> Any:
    """The result of a work, whose milliseconds of processor time are added to `times`."""
    begun = time.thread_time()
    result = work()
    times.setdefault(name, []).append(1000 * (time.thread_time() - begun))
    return result


def in_turn(works: Mapping[str, Work], times: dict[str, list[float]]) -> dict[str, Any]:
    """The results of all works, run one after another."""
    return {name: timed(times, name, work) for name, work in works.items()}


def stages(pictures: Mapping[str, list[bytes]], folders: Mapping[str, Path], path: Path) -> dict[str, Any]:
    """Milliseconds by kind of picture and stage, as the job has them with a model that costs nothing."""
    times: dict[str, dict[str, list[float]]] = {kind: {} for kind in pictures}
    prepared = prepare(bench_job(next(iter(folders.values())), path, path.parent))
    model, job = prepared.model, prepared.job
    session = open_session(
        prepared.model_bytes, model, job.session, Device(threads=1), engine="onnxruntime", precision="fp32"
    )
    spec, output = model.contract.input, model.contract.output
    for together in zip(*pictures.values(), strict=True):
        for of, data in zip(times.values(), together, strict=True):
            [page] = timed(of, "decode", lambda d=data: list(decode(d, spec, LIMITS)))
            content, place = timed(of, "fit", lambda p=page: fitted(p, spec))
            normal = timed(of, "normalize", lambda c=content, g=place, p=page: normalize(c, g, spec, largest=p.largest))
            place = replace(place, source_hw=place.resized_hw)  # as output.geometry: model
            logits = session.run(normal[None])[0]
            timed(of, "encode", lambda x=logits, g=place: reduce(x, g, output, rle=True, confidence=False))
    table = {kind: {stage: round(statistics.median(ms), 3) for stage, ms in of.items()} for kind, of in times.items()}
    print(f"{'ms per picture':16}" + "".join(f"{stage:>11}" for stage in (*STAGES, "together")))
    for kind, of in table.items():
        of["together"] = round(sum(of.values()), 3)
        print(f"{kind:16}" + "".join(f"{of[stage]:11.2f}" for stage in (*STAGES, "together")))
    return table


def fitted(page: Any, spec: ModelInput) -> Any:
    """The picture at the model's size, and its geometry."""
    return fit(page.content, spec, tile_hw=(SIDE_PX, SIDE_PX), source_hw=(page.height, page.width))


def decoders(pictures: Mapping[str, list[bytes]]) -> list[dict[str, Any]]:
    """One row for each kind of picture and library."""
    rows = []
    for kind, contents in pictures.items():
        tried = {"unet-batch": ours_of(kind), **feed_libraries.decoders(kind)}
        times: dict[str, list[float]] = {}
        differing: dict[str, list[float]] = {}
        for data in contents:
            results = in_turn({name: lambda d=data, r=read: r(d) for name, read in tried.items()}, times)
            compare(results, "unet-batch", differing)
        rows += summary(kind, times, differing)
    return rows


def ours_of(kind: str) -> Callable[[bytes], npt.NDArray[Any]]:
    """The package's decoder at full size."""
    spec = ModelInput(fit="tile", color="gray", channels=1) if kind == "tiff" else FULL

    def read(data: bytes) -> npt.NDArray[Any]:
        [page] = decode(data, spec, LIMITS)
        return page.content  # type: ignore[no-any-return]

    return read


def resizers(contents: list[bytes]) -> list[dict[str, Any]]:
    """One row for each kernel and library, 512² to 256²."""
    rows = []
    size_hw = (SIDE_PX, SIDE_PX)
    for kernel in ("pil_bilinear_u8", "torch_bilinear"):
        others = feed_libraries.resizers(kernel, size_hw)
        times: dict[str, list[float]] = {}
        differing: dict[str, list[float]] = {}
        for data in contents:
            image = Image.open(io.BytesIO(data))
            image.load()
            works: dict[str, Work] = {"unet-batch": lambda i=image, k=kernel: resize(np.asarray(i), size_hw, k)}
            if kernel == "pil_bilinear_u8":  # as `decode` does, which saves the copy
                works["unet-batch"] = lambda i=image: np.asarray(i.resize(size_hw, Image.Resampling.BILINEAR))
            works |= {name: lambda i=image, w=work: w(i) for name, work in others.items()}
            compare(in_turn(works, times), "unet-batch", differing)
        rows += summary(kernel, times, differing)
    return rows


def compare(results: Mapping[str, npt.NDArray[Any]], reference: str, differing: dict[str, list[float]]) -> None:
    """Add, for each result, the share of its samples that differ from the reference's."""
    wanted = results[reference]
    for name, result in results.items():
        differing.setdefault(name, []).append(float((result.reshape(wanted.shape) != wanted).mean()))


def summary(kind: str, times: dict[str, list[float]], differing: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of a table, printed."""
    rows = []
    for name, ms in times.items():
        share, version = statistics.mean(differing[name]), feed_libraries.version(name)
        rows.append({"kind": kind, "library": name, "version": version, "ms": round(statistics.median(ms), 3)})
        rows[-1]["differing"] = share
        print(f"{kind:16} {name + ' ' + version:36} {rows[-1]['ms']:8.3f} ms  {share:.3%} of the samples differ")
    return rows


def masks() -> list[dict[str, Any]]:
    """Milliseconds for the runs, areas, boxes and RLE of two classes: from smooth blobs to noise."""
    rows = []
    random = np.random.default_rng(0)
    for side in MASK_SIDES:
        y, x = np.mgrid[:side, :side]
        smooth = ((np.sin(x / 30) + np.cos(y / 25)) > 0.3).astype(np.uint8) + (np.sin(x / 50 + y / 40) > 0.5)
        drawn = {
            "blobs": smooth.astype(np.uint8),
            "blobs, 2 % noise": np.where(random.random(smooth.shape) < 0.02, (smooth + 1) % 3, smooth).astype(np.uint8),
            "noise": random.integers(0, 3, smooth.shape).astype(np.uint8),
        }
        for name, labels in drawn.items():
            times: dict[str, list[float]] = {}
            for _ in range(9 if side < 4096 else 3):
                works = {"unet-batch": lambda m=labels: described(m), "pycocotools": lambda m=labels: by_coco(m)}
                results = in_turn(works, times)
                if results["unet-batch"] != results["pycocotools"]:
                    raise SystemExit(f"masks: {name} at {side}² differ from pycocotools")
            ms = {way: round(statistics.median(taken), 3) for way, taken in times.items()}
            rows.append({"mask": name, "side_px": side, **ms})
            print(f"{side:5}² {name:18} {ms['unet-batch']:9.2f} ms, pycocotools {ms['pycocotools']:9.2f} ms")
    return rows


def described(labels: npt.NDArray[np.uint8]) -> list[tuple[int, list[int], str]]:
    """Area, box and RLE of the classes 1 and 2."""
    found = runs_by_label(labels, without=0)
    return [(runs.area_px(), list(runs.bbox()), runs.rle()) for _, runs in sorted(found.items())]


def by_coco(labels: npt.NDArray[np.uint8]) -> list[tuple[int, list[int], str]]:
    """The same by pycocotools, one pass for each class."""
    encoded = [coco.encode(np.asfortranarray(labels == label)) for label in (1, 2)]
    return [(int(coco.area(one)), [int(side) for side in coco.toBbox(one)], one["counts"].decode()) for one in encoded]


def reduced(folder: Path, path: Path, count: int) -> dict[str, Any]:
    """How far labels move, and what it saves, if JPEGs are decoded at half their size."""
    import feed_reduced

    return feed_reduced.measure(folder, path, count)
