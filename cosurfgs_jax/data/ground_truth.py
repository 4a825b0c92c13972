"""The exact geometry that comes with the generated town."""

import dataclasses
import pathlib

import numpy as np

from cosurfgs_jax.formats.ply import check_finite, columns, read_ply, triangles_of

FOLDER = "ground_truth"  # inside a dataset folder


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """True surface of a dataset, in the dataset's frame.

    | field            | shape    | unit, frame                                                   |
    |------------------|----------|---------------------------------------------------------------|
    | `points`         | f64[M,3] | sampled by area on what at least two photographs see, dataset |
    | `normals`        | f64[M,3] | unit length, outwards, dataset                                |
    | `mesh_vertices`  | f64[n,3] | dataset                                                       |
    | `mesh_triangles` | i64[m,3] | counter-clockwise seen from outside; no surface inside        |
    |                  |          | buildings or ground                                           |
    | `depth_paths`    | V paths  | one `.npz` per photograph, by name: `depth` f32[H,W] camera z |
    |                  |          | at the pixel centres, `normal` f32[H,W,3] unit length towards |
    |                  |          | the camera, dataset frame                                     |
    | `unit`           | text     | of all lengths                                                |
    """

    points: np.ndarray
    normals: np.ndarray
    mesh_vertices: np.ndarray
    mesh_triangles: np.ndarray
    depth_paths: tuple[str, ...]
    unit: str = "m"

    def depth_path(self, view: int) -> str | None:
        """The `.npz` with the depth and the normals of a photograph (counted by name), or None
        where there is none.
        """
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
    points = read_ply(root / "points.ply")[0].get("vertex", np.empty(0))
    mesh, _ = read_ply(root / "mesh.ply")
    triangles = triangles_of(mesh, root / "mesh.ply")
    positions = columns(points, ("x", "y", "z"), root / "points.ply")
    vertices = columns(mesh["vertex"], ("x", "y", "z"), root / "mesh.ply")
    check_finite(positions, root / "points.ply")
    check_finite(vertices, root / "mesh.ply")
    return GroundTruth(
        points=positions,
        normals=columns(points, ("nx", "ny", "nz"), root / "points.ply"),
        mesh_vertices=vertices,
        mesh_triangles=triangles.astype(np.int64),
        depth_paths=tuple(str(path) for path in sorted((root / "depth").glob("*.npz"))),
    )


def ground_truth_of(root, names: list[str]) -> GroundTruth | None:
    """The ground truth of a dataset, with the exact depth of these photographs by their names.

    Args:
        root: the dataset's folder.
        names: of the photographs, sorted.
    """
    truth = load_ground_truth(root)
    if truth is None or not truth.depth_paths:
        return truth
    by_name = {pathlib.Path(path).stem: path for path in truth.depth_paths}
    stems = [pathlib.Path(name).stem for name in names]
    if len(set(stems)) == len(stems) and set(stems) <= set(by_name):
        return dataclasses.replace(truth, depth_paths=tuple(by_name[stem] for stem in stems))
    if len(truth.depth_paths) == len(names):  # counted by name
        return truth
    return dataclasses.replace(truth, depth_paths=())
