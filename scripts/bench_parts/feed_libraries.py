"""Other libraries that decode and resize pictures, where they are installed. Knows nothing of unet_batch.

Decoders take bytes, resizers a decoded picture of Pillow; both return an array (H, W, C): red, green, blue.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper
from PIL import Image

Pixels = npt.NDArray[Any]
Decode = Callable[[bytes], Pixels]
Resize = Callable[[Image.Image], Pixels]

PACKAGES = {
    "unet-batch": "unet-batch",
    "Pillow": "pillow",
    "imagecodecs": "imagecodecs",
    "imagecodecs spng": "imagecodecs",
    "simplejpeg": "simplejpeg",
    "PyTurboJPEG": "PyTurboJPEG",
    "OpenCV": "opencv-python-headless",
    "OpenCV float32": "opencv-python-headless",
    "kornia-rs": "kornia-rs",
    "cykooz-resizer": "cykooz-resizer",
    "ONNX Runtime Resize": "onnxruntime-gpu",
}
"""Name in the tables → package on PyPI."""


def version(name: str) -> str:
    """Version of the package; empty if it is not installed under its usual name."""
    try:
        return importlib.metadata.version(PACKAGES[name])
    except importlib.metadata.PackageNotFoundError:
        return ""


def decoders(kind: str) -> dict[str, Decode]:
    """The decoders of a kind of picture (jpeg, png, tiff), by name."""
    found: dict[str, Decode] = {"Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)))}
    makers: Mapping[str, Callable[[str], Decode | None]] = {
        "imagecodecs": _imagecodecs,
        "imagecodecs spng": _spng,
        "simplejpeg": _simplejpeg,
        "PyTurboJPEG": _turbojpeg,
        "OpenCV": _opencv,
        "kornia-rs": _kornia,
    }
    for name, make in makers.items():
        try:
            decoder = make(kind)
        except (ImportError, OSError, RuntimeError):  # not installed, or without its library
            continue
        if decoder is not None:
            found[name] = decoder
    return found


def resizers(kernel: str, size_hw: tuple[int, int]) -> dict[str, Resize]:
    """Resizers of RGB pictures that may equal a kernel of the contract, by name."""
    makers: Mapping[str, Callable[[], Resize]] = {
        "pil_bilinear_u8": {
            "ONNX Runtime Resize": lambda: _onnx_resize(size_hw),
            "cykooz-resizer": lambda: _cykooz(size_hw),
            "kornia-rs": lambda: _kornia_resize(size_hw),
        },
        "torch_bilinear": {
            "OpenCV": lambda: _opencv_resize(size_hw, np.uint8),
            "OpenCV float32": lambda: _opencv_resize(size_hw, np.float32),
        },
    }[kernel]
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError:
            continue
    return found


# Decoders --------------------------------------------------------------------------------------------------------


def _imagecodecs(kind: str) -> Decode:
    imagecodecs = importlib.import_module("imagecodecs")
    decode: Decode = getattr(imagecodecs, {"jpeg": "jpeg8_decode", "png": "png_decode", "tiff": "tiff_decode"}[kind])
    return decode


def _spng(kind: str) -> Decode | None:
    decode: Decode | None = importlib.import_module("imagecodecs").spng_decode if kind == "png" else None
    return decode


def _simplejpeg(kind: str) -> Decode | None:
    if kind != "jpeg":
        return None
    simplejpeg = importlib.import_module("simplejpeg")
    return lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")  # type: ignore[no-any-return]


def _turbojpeg(kind: str) -> Decode | None:
    if kind != "jpeg":
        return None
    turbojpeg = importlib.import_module("turbojpeg")
    decoder = turbojpeg.TurboJPEG()
    return lambda data: decoder.decode(data, pixel_format=turbojpeg.TJPF_RGB)  # type: ignore[no-any-return]


def _opencv(kind: str) -> Decode:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    how = cv2.IMREAD_UNCHANGED if kind == "tiff" else cv2.IMREAD_COLOR_RGB
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), how)  # type: ignore[no-any-return]


def _kornia(kind: str) -> Decode | None:
    kornia = importlib.import_module("kornia_rs").io
    if kind == "jpeg":
        return lambda data: kornia.decode_image_jpegturbo(data, "rgb")  # type: ignore[no-any-return]
    if kind == "png":
        return lambda data: kornia.decode_image_png_u8(data, png_size(data), "rgb")  # type: ignore[no-any-return]
    return None


def png_size(data: bytes) -> tuple[int, int]:
    """Rows and columns, of the header."""
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


# Resizers --------------------------------------------------------------------------------------------------------


def _onnx_resize(size_hw: tuple[int, int]) -> Resize:
    """The operator Resize with antialias, one thread."""
    node = helper.make_node(
        "Resize", ["image", "", "", "size"], ["resized"], mode="linear", antialias=1, exclude_outside=1, axes=[1, 2]
    )
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "height", "width", 3])
    size = helper.make_tensor_value_info("size", TensorProto.INT64, [2])
    resized = helper.make_tensor_value_info("resized", TensorProto.UINT8, None)
    graph = helper.make_graph([node], "resize", [image, size], [resized])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = np.array(size_hw)

    def resize(image: Image.Image) -> Pixels:
        resized: Pixels = session.run(None, {"image": np.asarray(image)[None], "size": wanted})[0][0]
        return resized

    return resize


def _cykooz(size_hw: tuple[int, int]) -> Resize:
    """The crate fast_image_resize: Pillow's algorithm with 16-bit weights and SIMD."""
    resizer = importlib.import_module("cykooz_resizer")
    worker = resizer.Resizer()
    how = resizer.ResizeOptions(resize_alg=resizer.ResizeAlg.convolution(resizer.FilterType.bilinear))

    def resize(image: Image.Image) -> Pixels:
        target = Image.new("RGB", size_hw[::-1])
        worker.resize_pil(image, target, how)
        return np.asarray(target)

    return resize


def _kornia_resize(size_hw: tuple[int, int]) -> Resize:
    kornia = importlib.import_module("kornia_rs").imgproc
    return lambda image: kornia.resize(np.asarray(image), size_hw, "bilinear")  # type: ignore[no-any-return]


def _opencv_resize(size_hw: tuple[int, int], dtype: type[Any]) -> Resize:
    """Two taps without antialias; uint8 with weights of 11 bits."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def resize(image: Image.Image) -> Pixels:
        pixels = np.asarray(image).astype(dtype, copy=False)
        resized = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        return np.rint(resized).astype(np.uint8)

    return resize
