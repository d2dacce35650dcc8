"""Thousands of JPEGs of 512 x 512 pixels, cut from real photographs with fixed seeds: what the benchmark scores.

The photographs are Debian's wallpaper packages (CC-BY, CC-BY-SA, CC0 and GPL, by package), fetched with `apt-get
download` and unpacked without installing anything; where there is no apt-get, scikit-image's sample pictures. Both are
cached. Knows nothing of models. As a program: photos.py FOLDER IMAGES prints one JSON line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
"""79 MB; mostly landscapes and close-ups. Which version comes depends on the Debian: `make` reports it."""
DRAWINGS = {"abstract", "desktop"}
"""Folders of mate-backgrounds that hold no photographs."""
FALLBACK = "scikit-image==0.26.0"
SIDE_PX = 512
QUALITY, SUBSAMPLING = 90, "4:2:0"
CUTS_OF_A_PHOTOGRAPH = 20
"""How many cuts are made of a photograph while it is decoded: decoding one of 20 Mpx takes longer than ten cuts."""


def make(folder: Path, images: int) -> dict[str, Any]:
    """`images` JPEGs in `folder`/photos-`images`, made once; says where, how many, how large, and from which source.

    The same sources, seeds and Pillow give the same bytes. Exits with a sentence where no photograph can be had.
    """
    target, record = folder / f"photos-{images}", folder / f"photos-{images}.json"
    if not (target.is_dir() and record.exists()):
        source, photographs = fetch(folder / "sources")
        scratch = folder / f".photos-{images}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        total_bytes = sum(write(scratch / f"photo-{n:05}.jpg", cut) for n, cut in enumerate(cuts(photographs, images)))
        facts = {"images": images, "bytes": total_bytes, "photographs": len(photographs), "source": source}
        facts |= {"side_px": SIDE_PX, "quality": QUALITY, "subsampling": SUBSAMPLING}
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
        record.write_text(json.dumps(facts))  # beside the folder, which holds nothing but images
    return {"folder": str(target), **json.loads(record.read_text())}


def fetch(folder: Path) -> tuple[str, list[Path]]:
    """What was fetched, and its photographs: at least 1.5 cuts wide and high, and JPEG (fallback: 1, and any)."""
    folder.mkdir(parents=True, exist_ok=True)
    source, smallest_px, suffixes = "debian", SIDE_PX * 3 // 2, {".jpg", ".jpeg"}  # the PNGs are drawings
    if not all(any(folder.glob(f"{package}_*.deb")) for package in PACKAGES):
        print(f"photos: downloading {', '.join(PACKAGES)} (79 MB, once)", file=sys.stderr)
        if not run(["apt-get", "download", "-qq", *PACKAGES], folder):
            source, smallest_px, suffixes = FALLBACK, SIDE_PX, {".jpg", ".jpeg", ".png"}
    if source == "debian":
        archives = sorted(path for package in PACKAGES for path in folder.glob(f"{package}_*.deb"))
        source = ", ".join(path.name.removesuffix("_all.deb") for path in archives)
        for archive in archives:
            run(["dpkg-deb", "--extract", archive.name, "files"], folder)
    else:
        print(f"photos: no wallpapers from apt-get; taking the pictures of {FALLBACK}", file=sys.stderr)
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", FALLBACK], folder)
        for wheel in folder.glob("scikit_image-*.whl"):
            zipfile.ZipFile(wheel).extractall(folder / "files")
    photographs = []
    for path in sorted((folder / "files").rglob("*")):
        if path.suffix.lower() in suffixes and not DRAWINGS.intersection(path.parts):
            with Image.open(path) as picture:
                if min(picture.size) >= smallest_px and picture.mode == "RGB":
                    photographs.append(path)
    if not photographs:
        sys.exit(f"photos: neither apt-get nor pip brought photographs to {folder}; is there a network?")
    return source, photographs


def cuts(photographs: list[Path], images: int) -> Iterator[Image.Image]:
    """Squares of the photographs in turn: random places, at full or half scale, half of them mirrored."""
    made = 0
    for turn in range(images):  # more turns than ever needed: each makes up to CUTS_OF_A_PHOTOGRAPH per photograph
        for number, path in enumerate(photographs):
            generator = np.random.default_rng([turn, number])
            with Image.open(path) as picture:
                photograph = picture.convert("RGB")
            for _ in range(CUTS_OF_A_PHOTOGRAPH):
                if made == images:
                    return
                yield cut(photograph, generator)
                made += 1


def cut(photograph: Image.Image, generator: np.random.Generator) -> Image.Image:
    """One random square of SIDE_PX; at half scale it shows four times the area."""
    scale = 2 if min(photograph.size) >= 2 * SIDE_PX and generator.random() < 0.5 else 1
    side = SIDE_PX * scale
    left = int(generator.integers(photograph.width - side + 1))
    top = int(generator.integers(photograph.height - side + 1))
    square = photograph.crop((left, top, left + side, top + side)).reduce(scale)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else square


def write(path: Path, image: Image.Image) -> int:
    """Writes one JPEG; returns its bytes."""
    image.save(path, format="JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return path.stat().st_size


def run(command: list[str], folder: Path) -> bool:
    """Whether the command is there and succeeded."""
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"photos: {' '.join(command)} failed: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: photos.py FOLDER IMAGES")
    print(json.dumps(make(Path(sys.argv[1]), int(sys.argv[2]))))
