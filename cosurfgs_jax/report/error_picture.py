"""Where a mesh is wrong and where it is missing: distances to and from ground truth as colours, in
files and in the report.
"""

import html
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from cosurfgs_jax import files, pictures
from cosurfgs_jax.errors import required
from cosurfgs_jax.formats.ply import columns, read_ply, table_of, write_ply
from cosurfgs_jax.metrics import Comparison
from cosurfgs_jax.report import page
from cosurfgs_jax.report.mesh_picture import draw_mesh, draw_points
from cosurfgs_jax.surface.mesh import Mesh, read_mesh_ply
from cosurfgs_jax.workdir import Workdir

NOT_COUNTED = np.array([205, 205, 205], np.uint8)  # grey: outside of what is compared
_NUM_STEPS = 9  # of the colour bar, between which a browser blends
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


def write_error_files(workdir: Workdir, mesh: Mesh, comparison: Comparison) -> None:
    """Writes what the pictures of the error show, for the report and for other programs.

    Args:
        workdir: gets `mesh_error`, the mesh with each vertex's distance to ground truth (NaN: not
            compared) and its colour; `truth_error`, the ground truth that counts with its distances
            to the mesh; `error_scale`, the top of the colour scale: the largest threshold of the
            scores.
        mesh: that was compared.
        comparison: with the distances of the mesh's vertices.
    """
    distances = required(comparison.vertex_to_truth, "Comparison.vertex_to_truth")
    largest = max(row["tau"] for row in comparison.scores["thresholds"])
    comments = (
        f"distance to ground truth; colours from 0 (dark) to {largest:.6g} (bright), grey: not "
        "compared",
    )
    write_ply(
        workdir.mesh_error,
        _table(mesh.vertices, distances, largest),
        mesh.triangles,
        comments=comments,
    )
    comments = (
        f"ground truth, distance to the mesh; colours from 0 (dark) to {largest:.6g} (bright)",
    )
    write_ply(
        workdir.truth_error,
        _table(comparison.truth, comparison.to_surface, largest),
        comments=comments,
    )
    files.write_json(workdir.error_scale, {"largest": largest, "unit": comparison.scores["unit"]})


def drop_error_files(workdir: Workdir) -> None:
    """Deletes them: they were of an earlier mesh."""
    for path in (workdir.mesh_error, workdir.truth_error, workdir.error_scale):
        path.unlink(missing_ok=True)


def error_pictures(workdir: Workdir, up: np.ndarray) -> str:
    """The files of `write_error_files` drawn from above and from the side with a colour bar, as
    HTML; "" where there are none.
    """
    written = (workdir.mesh_error, workdir.truth_error, workdir.error_scale)
    if not all(path.exists() for path in written):
        return ""
    scale = files.read_json_object(workdir.error_scale)
    mesh = read_mesh_ply(workdir.mesh_error)
    table = read_ply(workdir.truth_error)[0]["vertex"]
    points = columns(table, ("x", "y", "z"), workdir.truth_error)
    colors = columns(table, ("red", "green", "blue"), workdir.truth_error, np.uint8)
    cells = []
    both = np.concatenate([mesh.vertices, points])
    for title, azimuth, elevation in _VIEWS:
        options: dict[str, Any] = {
            "up": up,
            "azimuth_deg": azimuth,
            "elevation_deg": elevation,
            "fitting": both,
        }
        colors_of_mesh, _ = draw_mesh(mesh, **options)
        cells.append(
            page.figure(
                pictures.data_url(colors_of_mesh),
                f"mesh, distance to ground truth, {title}",
            )
        )
        cells.append(
            page.figure(
                pictures.data_url(draw_points(points, colors, **options)),
                f"ground truth, distance to the mesh, {title}",
            )
        )
    bar = _color_bar(scale["largest"], scale["unit"])
    return f'{bar}<div class="pair">{"".join(cells)}</div>'


def _color_bar(largest: float, unit: str) -> str:
    """The colours of distances from 0 to `largest`, with numbers below, as HTML."""
    steps = distance_colors(np.linspace(0, 1, _NUM_STEPS), 1.0).tolist()
    colors = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in steps)
    ends = ("0", f"{largest / 2:.4g}", f"{largest:.4g} {unit}".strip() + " or more")
    numbers = "".join(f"<span>{html.escape(text)}</span>" for text in ends)
    bar = f'<div style="background: linear-gradient(90deg, {colors})"></div>'
    return f'<div class="bar">{bar}<p>{numbers}</p></div>'
