"""What a call of scripts/gpu_smoke asks for: its arguments, and the sections in order of importance."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unet_batch.session.engines import TABLE
from unet_batch.spec import Precision

SECTIONS = {
    "parity": 0.15,
    "speed": 0.30,
    "job": 0.30,
    "memory": 0.10,
    "peer": 0.15,
    "bottleneck": 0.02,
}
"""Section → its weight when the time that is left is shared. In order of importance, in which they run."""
ARCHITECTURES = ("unet", "unet_bilinear", "unet_plus_plus", "attention_unet")
SECONDS = 240.0
"""Budget of a call without --seconds: below the 300 s that a call on a lent machine has."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a call."""

    provider: Literal["cuda", "cpu"]
    """cpu: a rehearsal, which shows that the script works and settles nothing."""
    size: int
    """Side of a tile in pixels."""
    base: int
    """Channels of the first level of the U-Net."""
    cap: int
    """Largest batch."""
    images: int
    """Pictures of the job."""
    seconds: float
    only: tuple[str, ...]
    architectures: tuple[str, ...]
    """Networks to export and compare, beside the main one."""
    models: tuple[Path, ...]
    """ONNX files to compare, each with its contract inside or beside it."""
    photos: Path | None
    """Folder of JPEGs for the job; None: drawn ones."""
    out: Path
    """Folder of the results."""
    until_s: float
    """Seconds since 1970 at which a section must have ended; 0 in the parent."""

    @property
    def on_gpu(self) -> bool:
        return self.provider == "cuda"

    @property
    def run_s(self) -> float:
        """Least time of the timed runs of one batch size."""
        return 0.25 if self.on_gpu else 0.01

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the provider computes in, of the three in question."""
        able = next(row for row in TABLE if (row.engine, row.name) == ("onnxruntime", self.provider)).precisions
        wanted: tuple[Precision, ...] = ("fp32", "tf32", "fp16")
        return tuple(name for name in wanted if name in able)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal without a GPU")
    found.add_argument("--only", default=",".join(SECTIONS), help=f"sections, comma-separated: {', '.join(SECTIONS)}")
    found.add_argument("--seconds", type=float, default=SECONDS, help=f"budget of all sections (default {SECONDS:g})")
    found.add_argument("--out", type=Path, help="folder for the results, written while sections run")
    found.add_argument("--size", type=int, default=256, help="side of a tile (default 256)")
    found.add_argument("--base", type=int, default=32, help="channels of the U-Net's first level (default 32)")
    found.add_argument("--cap", type=int, default=64, help="largest batch (default 64)")
    found.add_argument("--images", type=int, default=4000, help="pictures of the job, 512² each (default 4000)")
    found.add_argument("--photos", type=Path, help="folder of JPEGs for the job, repeated as needed; default: drawn")
    found.add_argument("--model", type=Path, action="append", default=[], help="an ONNX file to compare, repeatable")
    found.add_argument(
        "--architectures",
        default=",".join(ARCHITECTURES),
        help="networks to export with PyTorch and compare, comma-separated; empty: none",
    )
    found.add_argument("--child", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    found.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return found


def settings_of(args: argparse.Namespace, out: Path, root: Path) -> Settings:
    """The settings of parsed arguments. root: of the checkout, where the demo's model may lie. Raises ValueError."""
    only = tuple(name for name in args.only.split(",") if name)
    architectures = tuple(name for name in args.architectures.split(",") if name)
    for what, names, known in (("--only", only, tuple(SECTIONS)), ("--architectures", architectures, ARCHITECTURES)):
        if strange := [name for name in names if name not in known]:
            raise ValueError(f"{what} names {strange[0]!r}: write some of {', '.join(known)}")
    for name in ("size", "base", "cap", "images"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}: write a number of at least 1")
    if args.size % 16:
        raise ValueError(f"--size is {args.size}: the U-Net halves four times, so write a multiple of 16")
    if missing := [path for path in args.model if not path.is_file()]:
        raise ValueError(f"--model: there is no file {missing[0]}")
    if args.photos is not None and not any(args.photos.glob("*.jpg")):
        raise ValueError(f"--photos: there is no *.jpg in {args.photos}")
    demo = root / ".demo" / "model" / "nuclei.onnx"
    found = [demo] if args.provider == "cuda" and demo.is_file() else []  # it would make a rehearsal long
    return Settings(
        provider=args.provider,
        size=args.size,
        base=args.base,
        cap=args.cap,
        images=args.images,
        seconds=args.seconds,
        only=tuple(name for name in SECTIONS if name in only),
        architectures=architectures,
        models=tuple(path.resolve() for path in (*args.model, *found)),
        photos=None if args.photos is None else args.photos.resolve(),
        out=out,
        until_s=args.until,
    )
