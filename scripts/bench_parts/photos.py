"""Thousands of pictures of 512 x 512 pixels, cut from real photographs with fixed seeds: what the benchmark scores.

JPEGs; or the same cuts as 8-bit PNGs, or as TIFFs with one channel of 16 bits, as microscopes write them.
The photographs are Debian's wallpaper packages (CC-BY, CC-BY-SA, CC0 and GPL, by package), fetched with `apt-get
download` and unpacked without installing anything; where there is no apt-get, scikit-image's sample pictures. Both are
cached. Knows nothing of models. As a program: photos.py FOLDER IMAGES [PICTURES] prints one JSON line.
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
import tifffile
from PIL import Image

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
"""79 MB; mostly landscapes and close-ups. Which version comes depends on the Debian: `make` reports it."""
DRAWINGS = {"abstract", "desktop"}
"""Folders of mate-backgrounds that hold no photographs."""
FALLBACK = "scikit-image==0.26.0"
SIDE_PX = 512
QUALITY, SUBSAMPLING = 90, "4:2:0"
SUFFIXES = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif"}
"""Kind of pictures and the end of their names."""
LUMA_8 = (77, 150, 29)
"""ITU-R 601-2 weights × 256: 8-bit colours become 16-bit grey with all of its digits."""
CUTS_OF_A_PHOTOGRAPH = 20
"""How many cuts are made of a photograph while it is decoded: decoding one of 20 Mpx takes longer than ten cuts."""


def make(folder: Path, images: int, pictures: str = "jpeg") -> dict[str, Any]:
    """`images` pictures in `folder`/photos-`images`, made once; says where, how many, how large, and from which source.

    pictures: a kind of `SUFFIXES`; kinds other than jpeg have folders of their own. The same sources, seeds and
    libraries give the same bytes. Exits with a sentence where no photograph can be had.
    """
    name = f"photos-{images}" + (f"-{pictures}" if pictures != "jpeg" else "")
    target, record = folder / name, folder / f"{name}.json"
    if not (target.is_dir() and record.exists()):
        source, photographs = fetch(folder / "sources")
        scratch, suffix = folder / f".{name}.part", SUFFIXES[pictures]
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        made = enumerate(cuts(photographs, images))
        total_bytes = sum(write(scratch / f"photo-{n:05}{suffix}", cut) for n, cut in made)
        facts = {"images": images, "bytes": total_bytes, "photographs": len(photographs), "source": source}
        facts |= {"side_px": SIDE_PX}
        if pictures == "jpeg":
            facts |= {"quality": QUALITY, "subsampling": SUBSAMPLING}
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
    """Writes one picture in the format of its name; returns its bytes."""
    if path.suffix == ".jpg":
        image.save(path, format="JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    elif path.suffix == ".png":
        image.save(path, format="PNG")
    else:
        gray_hw = (np.asarray(image).astype(np.uint32) @ np.array(LUMA_8, np.uint32)).astype(np.uint16)
        tifffile.imwrite(path, gray_hw, compression="zlib", predictor=True)
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
    if len(sys.argv) not in (3, 4) or not set(sys.argv[3:]) <= set(SUFFIXES):
        sys.exit("usage: photos.py FOLDER IMAGES [jpeg|png|tiff]")
    print(json.dumps(make(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))
