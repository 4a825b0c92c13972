"""The sections of the report, in order. A new one is a function of `ReportInput`, and an entry
here.
"""

from cosurfgs_jax import files
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import WITHOUT_MATPLOTLIB, charts, has_matplotlib
from cosurfgs_jax.report.error_picture import error_pictures
from cosurfgs_jax.report.flight_map import flight_map
from cosurfgs_jax.report.map_pictures import map_pictures
from cosurfgs_jax.report.mesh_pictures import mesh_pictures
from cosurfgs_jax.report.partition_picture import partition_picture
from cosurfgs_jax.report.place import place_table
from cosurfgs_jax.report.provenance import provenance
from cosurfgs_jax.report.section import ReportInput, Section
from cosurfgs_jax.report.tables import (
    class_table,
    confidence_table,
    depth_tables,
    geometry_table,
    key_numbers,
    score_table,
    seam_table,
    settings_table,
    stage_table,
)
from cosurfgs_jax.report.view_pictures import view_pictures


def _charts(given: ReportInput) -> str:
    if has_matplotlib():
        return charts(given.curves)
    is_missed = bool(given.curves.charts) or given.workdir.partition.exists()
    return page.note(WITHOUT_MATPLOTLIB) if is_missed else ""


def _partition(given: ReportInput) -> str:
    path = given.workdir.partition
    if not path.exists() or not has_matplotlib():
        return ""
    return f'<div class="map">{partition_picture(files.read_json_object(path))}</div>'


def _error_pictures(given: ReportInput) -> str:
    return error_pictures(given.workdir, given.up)


SECTIONS = [
    Section("Map", map_pictures),
    Section("First numbers", key_numbers),
    Section("Flight", flight_map, "Where the photographs were taken, seen from above."),
    Section(
        "Test views",
        view_pictures,
        "Photographs that training did not see. Depth: near is bright. Normals: red right, green "
        "up, blue towards the viewer.",
    ),
    Section(
        "Mesh",
        mesh_pictures,
        "Drawn without perspective. Reddish parts are seen from behind.",
    ),
    Section(
        "Error of the surface",
        _error_pictures,
        "Left, the mesh coloured by the distance to ground truth: bright parts are wrong, grey "
        "ones lie outside of what is compared. Right, ground truth coloured by the distance to "
        "the mesh: bright parts are missing there. The scale ends at the largest threshold of the "
        "scores.",
    ),
    Section("Course of training", _charts),
    Section(
        "Partition",
        _partition,
        "The cells that blocks train, with their photographs and SfM points.",
    ),
    Section("Stages", stage_table),
    Section(
        "Depth at the seams",
        seam_table,
        "Medians over pixels as fractions of the depth, in the band along the walls between cells "
        "and, in brackets, elsewhere. Blocks disagree: whole local models of two blocks about the "
        "same pixels, before they are cropped. Step: the jump of the merged model's depth across "
        "a wall beyond its slope. Without a wall: that jump at the same places in models that are "
        "of one piece there, for edges and roughness make jumps too; it is taken off in squares, "
        "and what is left is due to the wall.",
    ),
    Section(
        "Scores on test views",
        score_table,
        "On 8-bit images read back from files; means over views. 'Color corrected' is after a "
        "quadratic colour fit to each photograph, which hides differences of exposure. LPIPS is "
        "computed where `evaluate` is given weights.",
    ),
    Section(
        "Depth and normals against exact ones, test views",
        depth_tables,
        "Means over views. Median and 90th percentile are over the pixels that have a depth; "
        "'within 1 %' is the fraction of all pixels with an exact depth whose error is at most 1 % "
        "of it. Pixels through which more than half of the light passes have none. Walls: more "
        "than 60 degrees from up.",
    ),
    Section("Surface against ground truth", geometry_table),
    Section("Surface by parts", class_table),
    Section(
        "Surface by confidence",
        confidence_table,
        "How far the mesh's vertices are from the true surface, by the number of photographs that "
        "they are fused from, which the mesh has as `confidence`.",
    ),
    Section(
        "Photographs and place",
        place_table,
        "What `prepare` found: poses, focal length, scale and place on the map.",
    ),
    Section(
        "How it was made",
        provenance,
        "Programs in the order of their starts; times are UTC. A run that was stopped and went on "
        "is there several times.",
    ),
    Section("Settings that differ from the defaults", settings_table),
]
