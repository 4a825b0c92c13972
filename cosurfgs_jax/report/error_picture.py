"""Where a mesh is wrong and where it is missing: distances to and from ground truth as colours, in
files and in the report.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from cosurfgs_jax import files, pictures
from cosurfgs_jax.formats.ply import columns, read_ply, table_of, write_ply
from cosurfgs_jax.metrics import Comparison
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import color_bar
from cosurfgs_jax.report.mesh_picture import draw_mesh, draw_points
from cosurfgs_jax.surface.mesh import Mesh, read_mesh_ply

ERROR_FILE = "error.ply"
MISSING_FILE = "completeness.ply"
SCALE_FILE = "error.json"  # in workdir/mesh
NOT_COUNTED = np.array([205, 205, 205], np.uint8)  # grey: outside of what is compared
_VIEWS = (("from above", -90.0, 90.0), ("from the side", -60.0, 30.0))


def distance_colors(distances: Float[np.ndarray, " n"], largest: float) -> UInt8[np.ndarray, "n 3"]:
    """Dark at 0, bright at `largest` and beyond, grey where the distance is NaN."""
    colors = pictures.ramp_on_white(np.nan_to_num(distances, nan=0.0) / largest)
    colors[np.isnan(distances)] = NOT_COUNTED
    return colors


def _table(points: np.ndarray, distances: np.ndarray, largest: float) -> np.ndarray:
    return table_of(
        ("x y z", "f8", points),
        ("distance", "f4", distances[:, None]),
        ("red green blue", "u1", distance_colors(distances, largest)),
    )


def write_error_files(folder: Path, mesh: Mesh, comparison: Comparison) -> None:
    """Writes what the pictures of the error show, for the report and for other programs.

    Args:
        folder: workdir/mesh. Gets error.ply, the mesh with each vertex's distance to ground truth
            (NaN: not compared) and its colour; completeness.ply, the ground truth that counts with
            its distances to the mesh; error.json, the top of the
            colour scale: the largest threshold of the scores.
        mesh: that was compared.
        comparison: with the distances of the mesh's vertices.
    """
    largest = max(row["tau"] for row in comparison.scores["thresholds"])
    comments = (
        f"distance to ground truth; colours from 0 (dark) to {largest:.6g} (bright), grey: not "
        "compared",
    )
    write_ply(
        folder / ERROR_FILE,
        _table(mesh.vertices, comparison.vertex_to_truth, largest),
        mesh.triangles,
        comments=comments,
    )
    comments = (
        f"ground truth, distance to the mesh; colours from 0 (dark) to {largest:.6g} (bright)",
    )
    write_ply(
        folder / MISSING_FILE,
        _table(comparison.truth, comparison.to_surface, largest),
        comments=comments,
    )
    files.write_json(folder / SCALE_FILE, {"largest": largest, "unit": comparison.scores["unit"]})


def drop_error_files(folder: Path) -> None:
    """Deletes them: they were of an earlier mesh."""
    for name in (ERROR_FILE, MISSING_FILE, SCALE_FILE):
        (folder / name).unlink(missing_ok=True)


def error_pictures(folder: Path, up: np.ndarray) -> str:
    """The files of `write_error_files` drawn from above and from the side with a colour bar, as
    HTML; "" where there are none.
    """
    if not all((folder / name).exists() for name in (ERROR_FILE, MISSING_FILE, SCALE_FILE)):
        return ""
    scale = files.read_json_object(folder / SCALE_FILE)
    mesh = read_mesh_ply(folder / ERROR_FILE)
    table = read_ply(folder / MISSING_FILE)[0]["vertex"]
    points = columns(table, ("x", "y", "z"), folder / MISSING_FILE)
    colors = columns(table, ("red", "green", "blue"), folder / MISSING_FILE, np.uint8)
    cells = []
    both = np.concatenate([mesh.vertices, points])
    for title, azimuth, elevation in _VIEWS:
        options = {"up": up, "azimuth_deg": azimuth, "elevation_deg": elevation, "fitting": both}
        cells.append(
            page.figure(
                pictures.data_url(draw_mesh(mesh, **options)),
                f"mesh, distance to ground truth, {title}",
            )
        )
        cells.append(
            page.figure(
                pictures.data_url(draw_points(points, colors, **options)),
                f"ground truth, distance to the mesh, {title}",
            )
        )
    bar = color_bar("distance", scale["largest"], scale["unit"])
    return f'{bar}<div class="pair">{"".join(cells)}</div>'
