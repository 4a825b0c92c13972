"""Surfels as splat files that viewers open (binary PLY)."""

import logging
import os
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.formats.ply import columns, names_of, read_ply, write_ply_parts
from cosurfgs_jax.types import Surfels, blank_params, param_shapes

# Thickness that stands for "flat" in files that need a third scale, as a fraction of the model's
# spread: thin enough to be invisible, thick enough that its square stays a normal float32 (1e-12).
_THICKNESS = 1e-6
_log = logging.getLogger(__name__)


# Fields that have columns in files of 3DGS. The others follow under their own names.
_KNOWN_TO_3DGS = ("means", "quats", "log_scales", "logit_opacities", "sh")


def _own_columns(num_coefficients: int) -> dict[str, list[str]]:
    """The columns of each field that 3DGS does not have: "name", or "name_0", "name_1", ..."""
    names = {}
    for field, shape in param_shapes(1, num_coefficients).items():
        size = int(np.prod(shape))
        if field not in _KNOWN_TO_3DGS:
            names[field] = [f"{field}_{i}" for i in range(size)]
            if len(shape) == 1:
                names[field] = [field]
    return names


def _rest_names(num_coefficients: int) -> list[str]:
    return [f"f_rest_{i}" for i in range(3 * (num_coefficients - 1))]


def unit_normals(quats: np.ndarray) -> np.ndarray:
    """Third axes [n,3] of quaternions wxyz [n,4] of any length but zero."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=-1, keepdims=True)).T
    return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1)


def is_drawable(surfels: Surfels) -> np.ndarray:
    """Which surfels bool[N] are alive with finite numbers."""
    keep = np.asarray(surfels.alive)
    for field in surfels.by_name().values():
        keep = keep & np.isfinite(np.asarray(field)).reshape(len(keep), -1).all(axis=1)
    return keep & (np.abs(np.asarray(surfels.quats)).sum(axis=1) > 0)


def drawable_of(surfels: Surfels) -> Surfels:
    """The surfels that are alive with finite numbers, as NumPy arrays."""
    keep = is_drawable(surfels)
    return jax.tree.map(lambda values: np.asarray(values)[keep], surfels)


def splat_table(surfels: Surfels, extent: Extent) -> np.ndarray:
    """The rows of surfels in a file of the form "2d".

    Args:
        surfels: n of `drawable_of`, in the frame that the file shall have.
        extent: of all surfels of the file.
    """
    means = np.asarray(surfels.means)
    quats, log_scales, logits, sh = (
        np.asarray(field, np.float32)
        for field in (surfels.quats, surfels.log_scales, surfels.logit_opacities, surfels.sh)
    )
    named = dict(zip("xyz", means.T, strict=True))
    named |= dict(zip(("nx", "ny", "nz"), unit_normals(quats).T, strict=True))
    named |= {f"f_dc_{i}": sh[:, 0, i] for i in range(3)}
    # Channel-major: all coefficients of red, then green, then blue.
    rest = np.transpose(sh[:, 1:], (0, 2, 1)).reshape(len(sh), 3 * (sh.shape[1] - 1))
    named |= dict(zip(_rest_names(sh.shape[1]), rest.T, strict=True))
    named["opacity"] = logits
    named |= {f"scale_{i}": log_scales[:, i] for i in range(2)}
    named |= {f"rot_{i}": quats[:, i] for i in range(4)}
    for field, own in _own_columns(sh.shape[1]).items():
        values = np.asarray(getattr(surfels, field), np.float32).reshape(len(sh), len(own))
        named |= dict(zip(own, values.T, strict=True))
    exact = "xyz" if extent.needs_double else ""
    table = np.empty(len(sh), [(name, "f8" if name in exact else "f4") for name in named])
    for name, values in named.items():
        table[name] = values
    return table


def around(table: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The rows of `splat_table` with coordinates from `origin` f64[3] on, in single precision."""
    kinds = [(name, "f4") for name in names_of(table.dtype)]
    near = np.empty(len(table), kinds)
    for name, _ in kinds:
        near[name] = table[name]
    for name, shift in zip("xyz", origin, strict=True):
        near[name] = table[name] - shift
    return near


def with_thickness(table: np.ndarray, extent: Extent) -> np.ndarray:
    """The rows of the form "3dgs" of those of `splat_table`."""
    columns_3dgs = []
    for name in names_of(table.dtype):
        columns_3dgs.append((name, table.dtype[name]))
        if name == "scale_1":
            columns_3dgs.append(("scale_2", np.dtype("f4")))
    wide = np.empty(len(table), columns_3dgs)
    for name in names_of(table.dtype):
        wide[name] = table[name]
    # Never thicker than a hundredth of the smaller side: the file must stay one of discs.
    wide["scale_2"] = np.minimum(
        np.log(_THICKNESS * max(extent.spread, 1e-30)),
        np.minimum(table["scale_0"], table["scale_1"]) - np.log(100.0),
    )
    return wide


def write_splat_tables(
    path: str | os.PathLike, tables: Iterable[np.ndarray], extent: Extent, form: str
) -> None:
    """Writes a splat file part by part, atomically.

    Args:
        path: the file.
        tables: at least one, of `splat_table` or, for the form "3dgs", `with_thickness`.
        extent: of all of their surfels.
        form: see `write_surfels_ply`.
    Raises:
        InputError: no surfel to write, or a disk that is full.
    """
    if not extent.count:
        raise InputError(f"{path}: there is no living surfel to write; was the model trained?")
    if extent.needs_double:
        _log.warning(
            "%s: coordinates up to %.3g need double precision, which some viewers of splats do not "
            "read",
            path,
            extent.largest_coordinate,
        )
    comments = ("cosurfgs_jax surfels", f"form {form}")
    write_ply_parts(path, extent.count, tables, comments=comments)


def write_surfels_ply(path: str | os.PathLike, surfels: Surfels, form: str = "2d") -> int:
    """Writes the living surfels in the column layout of 3DGS files, atomically.

    Fields that 3DGS does not have come last, under their own names.

    All columns are float, but x y z are double where float would be too coarse (large map
    coordinates).

    Args:
        path: the file.
        surfels: in the frame that the file shall have (the dataset's); those that are dead or not
            finite are left out.
        form: "2d": two scales, what 2D viewers detect. "3dgs": a third scale of 1e-6 of the model's
            spread, so that viewers which know only volumes open the file. Both have the surfel
            normals in nx ny nz.
    Returns:
        The number of surfels written.
    Raises:
        InputError: no surfel to write, an unknown form, or a disk that is full.
    """
    return write_surfel_parts(path, lambda: [surfels], form)


def write_surfel_parts(
    path: str | os.PathLike, parts: Callable[[], Iterable[Surfels]], form: str = "2d"
) -> int:
    """The same part by part: one is in memory at a time.

    Args:
        path, form: as in `write_surfels_ply`.
        parts: called twice, gives the same surfels in the same parts.
    Returns, Raises: as `write_surfels_ply`.
    """
    if form not in ("2d", "3dgs"):
        raise InputError(f'form: expected "2d" or "3dgs", got {form!r}')
    extent = Extent()
    for part in map(drawable_of, parts()):
        extent.add(np.asarray(part.means), np.asarray(part.log_scales))
    tables = (splat_table(drawable_of(part), extent) for part in parts())
    if form == "3dgs":
        tables = (with_thickness(table, extent) for table in tables)
    write_splat_tables(path, tables, extent, form)
    return extent.count


def read_surfels_ply(path: str | os.PathLike) -> Surfels:
    """Reads a splat file of either form; a third scale is dropped, and fields that 3DGS does not
    have are blank if their columns are missing.

    Args:
        path: the file, in any column order, with any extra columns.
    Returns:
        Surfels, all alive, in the file's frame.
    Raises:
        InputError: unreadable, a column is missing, or the file holds volumes (a third scale that
            is not the smallest).
    """
    tables, _ = read_ply(path)
    if "vertex" not in tables or not len(tables["vertex"]):
        raise InputError(f"{path}: expected a splat file, got one without vertices")
    table = tables["vertex"]

    def read(*names: str) -> np.ndarray:
        return columns(table, names, path, np.float32)

    log_scales = read("scale_0", "scale_1")
    names = names_of(table.dtype)
    if "scale_2" in names and np.any(table["scale_2"] > log_scales.min(axis=1)):
        raise InputError(
            f"{path}: expected flat surfels, got volumes (scale_2 is not the smallest scale); "
            "only files of surfels can be read"
        )
    num_rest = sum(name.startswith("f_rest_") for name in names)
    num_coefficients = num_rest // 3 + 1
    if num_rest != 3 * (num_coefficients - 1) or num_coefficients not in (1, 4, 9, 16):
        raise InputError(f"{path}: expected 0, 9, 24 or 45 f_rest columns, got {num_rest}")
    sh = read("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if num_rest:
        rest = read(*_rest_names(num_coefficients)).reshape(len(table), 3, num_coefficients - 1)
        sh = np.concatenate([sh, np.transpose(rest, (0, 2, 1))], axis=1)
    fields = blank_params(len(table), num_coefficients).by_name()
    fields |= {
        "means": read("x", "y", "z"),
        "quats": read("rot_0", "rot_1", "rot_2", "rot_3"),
        "log_scales": log_scales,
        "logit_opacities": read("opacity")[:, 0],
        "sh": sh,
    }
    for field, own in _own_columns(num_coefficients).items():
        if own[0] in names:
            fields[field] = read(*own).reshape(fields[field].shape)
    arrays = {field: jnp.asarray(values) for field, values in fields.items()}
    return Surfels(**arrays, alive=jnp.ones(len(table), bool))
