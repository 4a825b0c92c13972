"""The PLY container: elements of scalar columns, and triangle lists. What columns mean is their
owners' business.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import atomic_path, reading

_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_NAMES = {
    "i1": "char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
    "f4": "float",
    "f8": "double",
}
_LIST_LENGTH = "_length_of_"
TRIANGLE: np.dtype = np.dtype([("n", "u1"), ("v", "<i4", (3,))])  # a row of the faces
_MAX_LINE = 4096  # bytes of a header's line


def write_ply(
    path: str | os.PathLike,
    vertices: np.ndarray,
    triangles: np.ndarray | None = None,
    comments: tuple[str, ...] = (),
) -> None:
    """Writes a binary little-endian PLY file atomically.

    Args:
        path: the file.
        vertices: structured array; its fields are the columns, in order.
        triangles: i32[F,3] vertex numbers, or None for a file without faces.
        comments: lines for the header.
    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    num_triangles = None
    triangle_parts = []
    if triangles is not None:
        num_triangles = len(triangles)
        triangle_parts = [triangles]
    write_ply_parts(
        path,
        num_vertices=len(vertices),
        vertex_parts=[vertices],
        num_triangles=num_triangles,
        triangle_parts=triangle_parts,
        comments=comments,
    )


def write_ply_parts(
    path: str | os.PathLike,
    num_vertices: int,
    vertex_parts: Iterable[np.ndarray],
    num_triangles: int | None = None,
    triangle_parts: Iterable[np.ndarray] = (),
    comments: tuple[str, ...] = (),
) -> None:
    """Writes a PLY file of which only a part is in memory at a time; otherwise as `write_ply`.

    Args:
        path: the file.
        num_vertices, num_triangles: the sums over the parts; None triangles = a file without faces.
        vertex_parts: at least one structured array, all of one type.
        triangle_parts: i32[f,3]; read after the vertices.
        comments: lines for the header.
    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    vertex_parts = iter(vertex_parts)
    first = next(vertex_parts)
    columns = [(name, first.dtype[name].str[1:]) for name in names_of(first.dtype)]
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments)]
    header += [
        f"element vertex {num_vertices}",
        *(f"property {_NAMES[kind]} {name}" for name, kind in columns),
    ]
    if num_triangles is not None:
        header += [f"element face {num_triangles}", "property list uchar int vertex_indices"]
    header.append("end_header\n")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        for part in itertools.chain([first], vertex_parts):
            file.write(
                part.astype([(name, "<" + kind) for name, kind in columns], copy=False).tobytes()
            )
        for part in triangle_parts:
            faces = np.empty(len(part), TRIANGLE)
            faces["n"] = 3
            faces["v"] = part
            file.write(faces.tobytes())


def parse_header(
    file, path
) -> tuple[str, list[tuple[str, int, list[tuple[str, str, str]]]], list[str]]:
    """The header of an open file: its format, its elements (name, rows, properties) and its
    comments. The file stands at its first row then.

    Raises:
        InputError: it is no PLY file, or a line is unknown.
    """
    if file.readline(_MAX_LINE).strip() != b"ply":
        raise InputError(
            f"{path}: expected a PLY file, got something else (the first line is not 'ply')"
        )
    form = ""
    elements = []
    comments = []
    while True:
        line = file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise InputError(f"{path}: the PLY header has no end; the file is cut off")
        words = line.decode("ascii", "replace").split()
        match words:
            case ["format", form, *_]:
                pass
            case ["comment", *rest]:
                comments.append(" ".join(rest))
            case ["obj_info", *_]:
                pass
            case ["element", name, count] if count.isdigit() and name not in (
                known for known, *_ in elements
            ):
                elements.append((name, int(count), []))
            case ["property", "list", count_type, item_type, name] if (
                count_type in _TYPES and item_type in _TYPES and elements
            ):
                elements[-1][2].append((name, _TYPES[item_type], _TYPES[count_type]))
            case ["property", item_type, name] if item_type in _TYPES and elements:
                elements[-1][2].append((name, _TYPES[item_type], ""))
            case ["end_header"]:
                break
            case [_, *_]:
                raise InputError(
                    f"{path}: unknown PLY property line "
                    f"{line.decode('ascii', 'replace').strip()[:80]!r}"
                )
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise InputError(f"{path}: expected an ascii or binary PLY file, got format {form[:40]!r}")
    return form, elements, comments


def element_dtype(properties: list[tuple[str, str, str]], order: str) -> np.dtype:
    """The type of an element's rows.

    Args:
        properties: of `parse_header`.
        order: of the bytes, "<" or ">".
    """
    fields = []
    for name, item, count in properties:
        if count:
            fields.append((_LIST_LENGTH + name, order + count))
            fields.append((name, order + item, (3,)))
        else:
            fields.append((name, order + item))
    return np.dtype(fields)


def _read_ascii(file, count: int, dtype: np.dtype, path) -> np.ndarray:
    rows = np.loadtxt(file, dtype=np.float64, max_rows=count, ndmin=2, comments=None)
    names = names_of(dtype)
    widths = [dtype[name].shape[0] if dtype[name].shape else 1 for name in names]
    if rows.shape != (count, sum(widths)):
        raise InputError(
            f"{path}: expected {count} rows of {sum(widths)} numbers, got {rows.shape[0]} of "
            f"{rows.shape[1]}; the file is cut off or its faces are not triangles"
        )
    table = np.empty(count, dtype)
    column = 0
    for name, width in zip(names, widths, strict=True):
        part = rows[:, column : column + width]
        kind = dtype[name].base
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            if not np.all((part == np.round(part)) & (part >= limits.min) & (part <= limits.max)):
                raise InputError(
                    f"{path}: expected whole numbers of type {kind} as "
                    f"{name.removeprefix(_LIST_LENGTH)!r}, "
                    "got others"
                )
        table[name] = part if dtype[name].shape else part[:, 0]
        column += width
    return table


def _read_binary(file, name: str, count: int, dtype: np.dtype, path) -> np.ndarray:
    left = os.fstat(file.fileno()).st_size - file.tell()
    if left < count * dtype.itemsize:
        # Polygons with another number of corners also end here, or later at the lengths.
        raise InputError(
            f"{path}: expected {count * dtype.itemsize} bytes of {name!r}, got {left}; the file is "
            "cut off or its "
            "faces are not triangles"
        )
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _check_end(file, path) -> None:
    rest = file.read(_MAX_LINE)
    if rest.strip():
        raise InputError(
            f"{path}: expected the end of the file after the elements that its header declares, "
            "got more; its faces "
            "are not triangles, or it is damaged: write it again"
        )


def read_ply(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads an ascii or binary PLY file.

    Args:
        path: the file.
    Returns:
        A dict from element name to structured array (native byte order; list columns are [n,3]),
        and the comments.
    Raises:
        InputError: missing, cut off, longer than its header says, not PLY, or with faces that are
            not triangles.
    """
    path = Path(path)
    with reading(path, "a whole PLY file", "write it again"), open(path, "rb") as file:
        form, elements, comments = parse_header(file, path)
        order = ">" if form == "binary_big_endian" else "<"
        tables = {}
        for name, count, properties in elements:
            dtype = element_dtype(properties, order)
            if not count:
                table = np.empty(0, dtype)
            elif form == "ascii":
                table = _read_ascii(file, count, dtype, path)
            else:
                table = _read_binary(file, name, count, dtype, path)
            for column, _, list_count in properties:
                if list_count and np.any(table[_LIST_LENGTH + column] != 3):
                    raise InputError(
                        f"{path}: expected triangles, got faces with another number of corners; "
                        "triangulate the mesh first"
                    )
            tables[name] = table.astype(dtype.newbyteorder("="))
        _check_end(file, path)
    return tables, comments


def names_of(dtype: np.dtype) -> tuple[str, ...]:
    """The columns of a structured type; none of a plain one."""
    return dtype.names or ()


def columns(table: np.ndarray, names: tuple[str, ...], path, dtype=np.float64) -> np.ndarray:
    """Stacks scalar columns to [n, len(names)]; InputError names those that are missing."""
    missing = [name for name in names if name not in names_of(table.dtype)]
    if missing:
        raise InputError(
            f"{path}: expected the properties {' '.join(names)}, got a file without "
            f"{' '.join(missing)}"
        )
    return np.stack([table[name].astype(dtype) for name in names], axis=-1)


def table_of(*parts: tuple[str, str, np.ndarray]) -> np.ndarray:
    """The inverse of `columns`: a structured array from (names separated by spaces, type such as
    "f4", [n, names]).
    """
    table = np.empty(
        len(parts[0][2]), [(name, kind) for names, kind, _ in parts for name in names.split()]
    )
    for names, _, values in parts:
        for name, column in zip(names.split(), values.T, strict=True):
            table[name] = column
    return table


def triangles_of(tables: dict[str, np.ndarray], path) -> np.ndarray:
    """The triangles i32[F,3] of what `read_ply` gave; InputError where there is none or one names a
    missing vertex.
    """
    faces = tables.get("face", np.empty(0, [("none", "u1")]))
    name = next((n for n in ("vertex_indices", "vertex_index") if n in names_of(faces.dtype)), "")
    if not name or not len(faces):
        raise InputError(f"{path}: expected a mesh, got a PLY file without triangles")
    numbers = faces[name].astype(np.int32)
    num_vertices = len(tables.get("vertex", ()))
    if numbers.min() < 0 or numbers.max() >= num_vertices:
        raise InputError(
            f"{path}: a triangle names vertex {numbers.max()}, but there are {num_vertices}"
        )
    return numbers


def read_points_ply(path: str | os.PathLike) -> np.ndarray:
    """Reads the vertices of a PLY file, e.g. a laser scan: f64[M,3] in the file's frame and unit.

    Raises:
        InputError: unreadable, without x y z, empty, or with points that are not finite.
    """
    tables, _ = read_ply(path)
    if "vertex" not in tables or not len(tables["vertex"]):
        raise InputError(f"{path}: expected a PLY file with points, got none")
    points = columns(tables["vertex"], ("x", "y", "z"), path)
    check_finite(points, path)
    return points


def check_finite(points: np.ndarray, path) -> None:
    """Raises InputError where points [n,3] of a file are NaN or infinite, with their number and the
    first.
    """
    broken = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if broken.size:
        raise InputError(
            f"{path}: expected finite points, got NaN or infinity in {broken.size} of "
            f"{len(points)}, the first is "
            f"number {broken[0]}; remove them"
        )
