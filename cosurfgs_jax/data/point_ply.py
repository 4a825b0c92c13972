"""Points to start from in PLY files, with or without colours."""

from pathlib import Path

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import columns, names_of, read_ply

_COLOR_NAMES = (
    ("red", "green", "blue"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("r", "g", "b"),
)
_GREY = 128  # of points without a colour


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points f64[P,3] and colours u8[P,3].

    Colours in real numbers are fractions of one, those of 16 bits become 8-bit ones.

    Raises:
        InputError: damaged, without x y z, or with colours that are none.
    """
    table = read_ply(path)[0].get("vertex", np.empty(0))
    if not len(table):
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    points = columns(table, ("x", "y", "z"), path)
    names = next(
        (names for names in _COLOR_NAMES if set(names) <= set(names_of(table.dtype))), None
    )
    if names is None:
        return points, np.full((len(points), 3), _GREY, np.uint8)
    colors = columns(table, names, path)
    kind = table.dtype[names[0]]
    if not np.all(np.isfinite(colors)):
        raise InputError(
            f"{path}: expected finite colours, got NaN or infinity; write the file again"
        )
    if kind.kind == "f" and colors.max() <= 1:
        colors = colors * 255
    elif kind.kind != "f" and kind.itemsize == 2 and colors.max() > 255:
        colors = colors / 257
    return points, np.clip(np.round(colors), 0, 255).astype(np.uint8)
