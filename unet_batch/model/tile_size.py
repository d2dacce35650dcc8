"""The size of a model's tiles, and the allowed sizes of its output."""

from __future__ import annotations

from unet_batch.contract import ModelInput

AXES: dict[str, dict[str, int]] = {
    "nchw": {"batch": 0, "channels": 1, "height": 2, "width": 3},
    "nhwc": {"batch": 0, "height": 1, "width": 2, "channels": 3},
    "nhw": {"batch": 0, "height": 1, "width": 2},
    "nk": {"batch": 0, "channels": 1},
}
"""Layout → position of each axis."""
UNKNOWN_MULTIPLE = 32
"""`input.multiple` of a draft: five levels, as in the encoders of most U-Nets."""
Size = tuple[int | None, int | None]
"""Rows and columns; None if unknown."""


def unplaceable(tile_hw: tuple[int, int], output_hw: Size, margin: int = 0) -> str | None:
    """Why the pixels of an output of this size have no known place in the tile; None if they have, or if unknown.

    margin: `output.margin`. Each side must equal the tile's side without the margin, or an integer fraction of it
    (half-size masks). With any other size the place of the pixels is unknown: 216 for 256 is a border cut off by
    convolutions without padding, not a smaller image.
    """
    for said, side in zip(output_hw, tile_hw, strict=True):
        inner = side - 2 * margin
        if inner < 1:
            return (
                f"output.margin {margin} leaves nothing of a tile of {tile_hw[0]}x{tile_hw[1]}: correct it, or use "
                f"tiles of more than {2 * margin}"
            )
        if said is not None and (said < 1 or inner % said):
            found = "x".join("?" if side is None else str(side) for side in output_hw)
            of_it = f"its size without output.margin {margin}" if margin else "its size"
            cut = margin_of(tile_hw, output_hw)
            hint = (
                f"if its convolutions are unpadded, write output.margin: {cut}"
                if cut
                else "export the network with padded convolutions, or resize its output in the graph"
            )
            return (
                f"the output of a tile of {tile_hw[0]}x{tile_hw[1]} is {found}, which is neither {of_it} nor an "
                f"integer fraction of it, so the place of its pixels is unknown: {hint}"
            )
    return None


def margin_of(tile_hw: tuple[int, int], output_hw: Size) -> int | None:
    """The margin of an output at the tile's resolution: half of what is missing; None if the axes disagree."""
    if None in output_hw:
        return None
    missing = {tile - (said or 0) for tile, said in zip(tile_hw, output_hw, strict=True)}
    lost = missing.pop()
    known = not missing and lost >= 0 and not lost % 2 and min(output_hw, default=0) > 0  # type: ignore[type-var, operator]
    return lost // 2 if known else None


def sizes(
    spec: ModelInput, fixed_hw: Size, size: int | None, problems: list[str]
) -> tuple[Size, tuple[int, int] | None]:
    """Height and width from file and contract, and the size of every tile, if fixed.

    fixed_hw: sizes fixed by the file. size: `tiling.size`; it counts if fit is `tile`, `pad` or `none` and the file
    leaves an axis open. With `stretch` and `letterbox` the contract's size counts.
    """
    known: list[int | None] = []
    for axis, fixed, said in zip(("height", "width"), fixed_hw, (spec.height, spec.width), strict=True):
        known.append(fixed or said)
        if fixed and said and fixed != said:
            problems.append(f"the model fixes its {axis} at {fixed}, but the contract says input.{axis}: {said}")
        elif said and not fixed and said != spec.side(said):
            problems.append(f"input.{axis} {said} is not {spec.sides} (input.multiple, input.remainder)")
        if size and fixed and size != fixed:
            problems.append(f"tiling.size is {size}, but the model fixes its {axis} at {fixed}: leave tiling.size out")
    height, width = known
    resized = spec.fit in ("stretch", "letterbox")
    if resized and not (height and width):
        problems.append(f"fit {spec.fit} needs a size that the model leaves open: write input.height and input.width")
    if size and None in fixed_hw:
        if size != spec.side(size):
            problems.append(f"tiling.size {size} is not {spec.sides} (input.multiple, input.remainder)")
        if not resized:
            return (height, width), (size, size)
        if height and width and (height, width) != (size, size):
            problems.append(f"tiling.size is {size}, but fit {spec.fit} makes {height}x{width}: leave tiling.size out")
    if height and width:
        return (height, width), (height, width)
    if height or width:
        problems.append(f"only one side of a tile is known, {height or width}: write input.height and input.width")
    return (height, width), None
