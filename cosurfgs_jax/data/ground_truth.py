"""The exact geometry that comes with the generated town."""

import dataclasses
import pathlib

import numpy as np

from cosurfgs_jax.errors import InputError

FOLDER = "ground_truth"  # inside a dataset folder

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """True surface of a dataset, in the dataset's frame.

    | field            | shape    | unit, frame                                                                 |
    |------------------|----------|-----------------------------------------------------------------------------|
    | `points`         | f64[M,3] | sampled by area on what at least two photographs see, dataset               |
    | `normals`        | f64[M,3] | unit length, outwards, dataset                                              |
    | `mesh_vertices`  | f64[n,3] | dataset                                                                     |
    | `mesh_triangles` | i64[m,3] | counter-clockwise seen from outside; no surface inside buildings or ground  |
    | `depth_paths`    | V paths  | one `.npz` per photograph, by name: `depth` f32[H,W] camera z at the pixel  |
    |                  |          | centres, `normal` f32[H,W,3] unit length towards the camera, dataset frame  |
    | `unit`           | text     | of all lengths                                                              |
    """

    points: np.ndarray
    normals: np.ndarray
    mesh_vertices: np.ndarray
    mesh_triangles: np.ndarray
    depth_paths: tuple[str, ...]
    unit: str = "m"

    def depth_path(self, view: int) -> str | None:
        """The `.npz` with the depth and the normals of a photograph (counted by name), or None where there is none."""
        return self.depth_paths[view] if 0 <= view < len(self.depth_paths) else None


def load_ground_truth(folder) -> GroundTruth | None:
    """Read `ground_truth/` of a dataset folder; None where the dataset has none.

    Args:
        folder: the dataset's folder.
    Raises:
        InputError: a file of the ground truth is missing or broken.
    """
    root = pathlib.Path(folder) / FOLDER
    if not root.is_dir():
        return None
    points, _ = read_ply(root / "points.ply")
    mesh, triangles = read_ply(root / "mesh.ply")
    if triangles is None:
        raise InputError(f"{root / 'mesh.ply'}: expected triangles, got none; delete the dataset and make it again")
    depth_paths = tuple(str(path) for path in sorted((root / "depth").glob("*.npz")))
    return GroundTruth(
        points=_columns(points, ("x", "y", "z"), root / "points.ply"),
        normals=_columns(points, ("nx", "ny", "nz"), root / "points.ply"),
        mesh_vertices=_columns(mesh, ("x", "y", "z"), root / "mesh.ply"),
        mesh_triangles=triangles,
        depth_paths=depth_paths,
    )


def _columns(vertices: np.ndarray, names: tuple[str, ...], path) -> np.ndarray:
    missing = [name for name in names if name not in vertices.dtype.names]
    if missing:
        raise InputError(f"{path}: expected the vertex properties {names}, got no {missing}; write the file again")
    return np.stack([vertices[name].astype(np.float64) for name in names], axis=1)


def write_ply(path, vertices: np.ndarray, normals: np.ndarray | None = None, triangles: np.ndarray | None = None):
    """Write points or a triangle mesh as a binary PLY.

    Args:
        path: file to write.
        vertices: f64[n,3], kept in double precision: large coordinates lose millimetres in float32.
        normals: f[n,3] or None, written as float32.
        triangles: i[m,3] or None.
    """
    fields = [("x", "<f8"), ("y", "<f8"), ("z", "<f8")]
    if normals is not None:
        fields += [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
    table = np.empty(len(vertices), dtype=fields)
    columns = vertices if normals is None else np.concatenate([vertices, normals], axis=1)
    for (name, _), column in zip(fields, columns.T, strict=True):
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {'double' if kind == '<f8' else 'float'} {name}" for name, kind in fields]
    if triangles is not None:
        header += [f"element face {len(triangles)}", "property list uchar int vertex_indices"]
    with open(path, "wb") as file:
        file.write(("\n".join(header) + "\nend_header\n").encode())
        file.write(table.tobytes())
        if triangles is not None:
            faces = np.empty(len(triangles), dtype=[("count", "u1"), ("ids", "<i4", (3,))])
            faces["count"], faces["ids"] = 3, triangles
            file.write(faces.tobytes())


def read_ply(path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the vertices and, where there are any, the triangles of a binary little-endian PLY.

    Args:
        path: the file.
    Returns:
        A structured array with one field per vertex property, and i64[m,3] triangles or None.
    Raises:
        InputError: the file is missing, is no binary little-endian PLY, or holds polygons other than triangles.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a PLY file, got no file; check the path")
    data = path.read_bytes()
    end = data.find(b"end_header\n")
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{path}: expected a PLY file, got another format; convert it to binary PLY")
    counts, properties, is_binary = _parse_ply_header(data[:end].decode("ascii", "replace"))
    if not is_binary:
        raise InputError(f"{path}: expected a binary little-endian PLY, got another kind; convert it")
    body = end + len(b"end_header\n")
    try:
        table = np.frombuffer(data, dtype=properties.get("vertex", []), count=counts.get("vertex", 0), offset=body)
        body += table.nbytes
        if not counts.get("face"):
            return table, None
        faces = np.frombuffer(data, dtype=properties["face"], count=counts["face"], offset=body)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected whole PLY data, got {error}; write the file again") from None
    if not np.all(faces["count"] == 3):
        raise InputError(f"{path}: expected triangles only, got larger polygons; triangulate the mesh")
    return table, faces["ids"].astype(np.int64)


def _parse_ply_header(header: str) -> tuple[dict, dict, bool]:
    counts, properties, element, is_binary = {}, {}, "", False
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            is_binary = words[1] == "binary_little_endian"
        elif words[:1] == ["element"]:
            element = words[1]
            counts[element], properties[element] = int(words[2]), []
        elif words[:2] == ["property", "list"]:
            properties[element] += [("count", _PLY_TYPES[words[2]]), ("ids", _PLY_TYPES[words[3]], (3,))]
        elif words[:1] == ["property"]:
            properties[element].append((words[2], _PLY_TYPES[words[1]]))
    return counts, properties, is_binary
