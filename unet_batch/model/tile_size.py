"""The size of a model's tiles, and what size its output may have for it.

Knows numbers of rows and columns. Knows no file and no session.
"""

from __future__ import annotations

from unet_batch.contract import ModelInput

AXES: dict[str, dict[str, int]] = {
    "nchw": {"batch": 0, "channels": 1, "height": 2, "width": 3},
    "nhwc": {"batch": 0, "height": 1, "width": 2, "channels": 3},
    "nhw": {"batch": 0, "height": 1, "width": 2},
}
"""Place of each axis, by layout."""
UNKNOWN_MULTIPLE = 32
"""Of a draft: five levels, as the encoders of most U-Nets have."""
Size = tuple[int | None, int | None]
"""Rows and columns; None: not known."""


def unplaceable(tile_hw: tuple[int, int], output_hw: Size) -> str | None:
    """Why an output of this size cannot be laid over its tile; None where it can, or where a side is not known.

    It can where each side is the tile's or an integer fraction of it (half-size masks). Any other size says nothing
    about where its pixels lie: 216 for 256 is a border cut off by convolutions without padding, not a smaller picture.
    """
    for said, side in zip(output_hw, tile_hw, strict=True):
        if said is not None and (said < 1 or side % said):
            found = "x".join("?" if side is None else str(side) for side in output_hw)
            return (
                f"a tile of {tile_hw[0]}x{tile_hw[1]} comes back as {found}, which is neither its size nor an integer "
                "fraction of it, so nobody knows where its pixels lie: export the network with padded convolutions, or "
                "resize its output in the graph"
            )
    return None


def sizes(
    spec: ModelInput, fixed_hw: Size, size: int | None, problems: list[str]
) -> tuple[Size, tuple[int, int] | None]:
    """Height and width as far as file and contract know them, and the size of every tile.

    fixed_hw: what the file fixes. size: `tiling.size`, which decides where fit is `tile`, `pad` or `none` and the file
    leaves an axis open; a picture that is resized has the contract's size.
    """
    known: list[int | None] = []
    for axis, fixed, said in zip(("height", "width"), fixed_hw, (spec.height, spec.width), strict=True):
        known.append(fixed or said)
        if fixed and said and fixed != said:
            problems.append(f"the model fixes its {axis} at {fixed}, but the contract says input.{axis}: {said}")
        elif said and not fixed and said % spec.multiple:
            problems.append(f"input.{axis} {said} is not a multiple of {spec.multiple} (input.multiple)")
        if size and fixed and size != fixed:
            problems.append(f"tiling.size is {size}, but the model fixes its {axis} at {fixed}: leave tiling.size out")
    height, width = known
    resized = spec.fit in ("stretch", "letterbox")
    if resized and not (height and width):
        problems.append(f"fit {spec.fit} needs a size that the model leaves open: write input.height and input.width")
    if size and None in fixed_hw:
        if size % spec.multiple:
            problems.append(f"tiling.size {size} is not a multiple of {spec.multiple} (input.multiple)")
        if not resized:
            return (height, width), (size, size)
        if height and width and (height, width) != (size, size):
            problems.append(f"tiling.size is {size}, but fit {spec.fit} makes {height}x{width}: leave tiling.size out")
    if height and width:
        return (height, width), (height, width)
    if height or width:
        problems.append(f"only one side of a tile is known, {height or width}: write input.height and input.width")
    return (height, width), None
