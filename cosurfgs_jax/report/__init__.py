"""report.html: what a run produced, in one file that opens anywhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosurfgs_jax import files, pictures, settings_file
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import line_chart, short_number
from cosurfgs_jax.report.error_picture import drop_error_files, error_pictures, write_error_files
from cosurfgs_jax.report.mesh_picture import draw_mesh
from cosurfgs_jax.report.partition_picture import partition_picture
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface.mesh import read_mesh_ply
from cosurfgs_jax.workdir import DEPTHS, NORMALS, PHOTOGRAPHS, RENDERS, TEST_NAMES, Workdir

__all__ = ["curves_from_rows", "drop_error_files", "write_error_files", "write_report"]

_KINDS = {PHOTOGRAPHS: "photograph", RENDERS: "render", DEPTHS: "depth", NORMALS: "normals"}
_PICTURE_WIDTH = 400
_MESH_MEMORY = (
    5  # bytes to read and draw a mesh per byte of its file; 3.9 measured on 4 million triangles
)
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]


def curves_from_rows(rows: list[dict], x_name: str = "step") -> Curves:
    """One chart per number and stage from rows of a log ({"stage": "device", "step": 50, "block":
    0, "loss": 0.1, ...}).

    Names with a slash share a chart: "psnr/train" and "psnr/test" are two lines of "psnr". Each
        block has its own lines.
    """
    charts: Curves = {}
    has_blocks = len({row.get("block") for row in rows}) > 1
    has_stages = len({row.get("stage") for row in rows}) > 1
    for row in rows:
        for name, value in row.items():
            if (
                name in (x_name, "block")
                or isinstance(value, bool)
                or not isinstance(value, int | float)
            ):
                continue
            chart, _, line = name.partition("/")
            if has_stages:
                chart = f"{chart}, {row.get('stage')}"
            if has_blocks:
                line = f"{line} block {row.get('block')}".strip()
            steps, values = charts.setdefault(chart, {}).setdefault(line or chart, ([], []))
            steps.append(row[x_name])
            values.append(value)
    return charts


def _format(value, digits: int = 4) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        if minutes >= 60
        else f"{minutes}:{seconds:02d}"
    )


def _view_pictures(workdir: Workdir, num_views: int) -> str:
    folder = workdir.newest_test()
    names = sorted(path.name for path in (folder / RENDERS).glob("*.png")) if folder else []
    if not names:
        return ""
    photo_names = (
        files.read_json_object(folder / TEST_NAMES) if (folder / TEST_NAMES).exists() else {}
    )
    per_view = files.read_json_object(workdir.per_view) if workdir.per_view.exists() else {}
    psnr = per_view.get(folder.name, {}).get("PSNR", {})
    chosen = [
        names[i] for i in np.unique(np.linspace(0, len(names) - 1, num_views).round().astype(int))
    ]
    rows = []
    for name in chosen:
        cells = []
        if (workdir.before / name).exists():
            image = pictures.shrink(pictures.read_image(workdir.before / name), _PICTURE_WIDTH)
            cells.append(page.figure(pictures.data_url(image), "before training"))
        for kind, title in _KINDS.items():
            if (folder / kind / name).exists():
                image = pictures.shrink(pictures.read_image(folder / kind / name), _PICTURE_WIDTH)
                caption = (
                    f"{title}: {photo_names.get(name, name)}" if kind == PHOTOGRAPHS else title
                )
                caption += (
                    f", {psnr[name]:.2f} dB"
                    if kind == RENDERS and psnr.get(name) is not None
                    else ""
                )
                cells.append(page.figure(pictures.data_url(image), caption))
        error = pictures.colorize_error(
            *(pictures.read_image(folder / kind / name) for kind in (RENDERS, PHOTOGRAPHS))
        )
        error = pictures.shrink(error, _PICTURE_WIDTH)
        cells.append(page.figure(pictures.data_url(error), "error, bright = 25 % or more"))
        layout = f"grid-template-columns: repeat({len(cells)}, 1fr)"
        rows.append(f'<div class="views" style="{layout}">{"".join(cells)}</div>')
    return "".join(rows)


def _mesh_pictures(workdir: Workdir, up: np.ndarray) -> str:
    path = workdir.mesh
    if not path.exists():
        return ""
    memory = files.available_memory()
    if memory is not None and _MESH_MEMORY * path.stat().st_size > memory:
        return (
            f"<p>The mesh has {path.stat().st_size / 2**30:.1f} GB, too much to be drawn in "
            "the "
            "memory of this machine.</p>"
        )
    mesh = read_mesh_ply(path)
    cells = []
    for title, azimuth, elevation in (("from above", -90.0, 90.0), ("from the side", -60.0, 30.0)):
        for kind, is_shaded in (("colours", False), ("shape", True)):
            image = draw_mesh(
                mesh, up=up, azimuth_deg=azimuth, elevation_deg=elevation, is_shaded=is_shaded
            )
            cells.append(page.figure(pictures.data_url(image), f"{title}, {kind}"))
    return f'<div class="pair">{"".join(cells)}</div>'


def _key_numbers(metrics: dict) -> str:
    final = metrics.get("final") or {}
    geometry = metrics.get("geometry") or {}
    unit = geometry.get("unit") or ""
    numbers = [
        (f"{final[key]:.{digits}f}{end}", name)
        for key, name, digits, end in (
            ("psnr", "PSNR, test views", 2, " dB"),
            ("psnr_color_corrected", "PSNR, colours fitted", 2, " dB"),
            ("ssim", "SSIM, test views", 3, ""),
        )
        if final.get(key) is not None
    ]
    if final.get("num_surfels") is not None:
        numbers.append((short_number(final["num_surfels"]), "surfels"))
    if geometry.get("thresholds"):
        first = geometry["thresholds"][0]
        numbers.append((f"{first['f1']:.3f}", f"F1 at {first['tau']:.3g} {unit}".strip()))
        numbers += [
            (f"{geometry[key]:.3g} {unit}".strip(), key)
            for key in ("accuracy", "completeness")
            if key in geometry
        ]
    seconds = [
        stage["seconds"]
        for stage in metrics.get("stages") or []
        if stage.get("seconds") is not None
    ]
    if seconds:
        numbers.append((_duration(sum(seconds)), "time of all stages"))
    return page.tiles(numbers) if numbers else ""


def _partition(workdir: Workdir) -> str:
    path = workdir.partition
    if not path.exists():
        return ""
    table = files.read_json_object(path)
    return f'<div class="pair">{partition_picture(table)}</div>'


def _stage_table(metrics: dict, timings: dict[str, float]) -> str:
    rows = []
    for stage in metrics.get("stages") or []:
        counts = stage.get("num_surfels") or []
        counts = counts if isinstance(counts, list) else [counts]
        peak = stage.get("peak_bytes_per_device")
        rows.append(
            [
                str(stage.get("name", "")),
                _format(stage.get("steps")),
                _duration(stage["seconds"]) if stage.get("seconds") is not None else "",
                f"{sum(counts):,}" + (f" in {len(counts)} blocks" if len(counts) > 1 else "")
                if counts
                else "",
                _format(stage.get("psnr_test")),
                _format(stage.get("ssim_test")),
                _format(stage.get("psnr_seam")),
                f"{peak / 2**20:,.0f} MB" if peak else "",
            ]
        )
    stages = page.table(
        ["stage", "steps", "time", "surfels", "PSNR", "SSIM", "PSNR at seams", "peak per device"],
        rows,
    )
    return stages + page.table(
        ["part", "time"], [[name, _duration(value)] for name, value in timings.items()]
    )


def _seam_table(metrics: dict) -> str:
    """Depth at the seams after each stage; "" where none was measured."""

    def both(stage: dict, key: str) -> str:
        values = [stage.get(f"depth_{key}_{where}") for where in ("seam", "rest")]
        seam, rest = ("" if value is None else f"{value:.3%}" for value in values)
        return f"{seam} ({rest})" if rest else seam

    rows = []
    for stage in metrics.get("stages") or []:
        expected, excess = (stage.get(f"depth_step_{key}") for key in ("expected", "excess"))
        disagreement, step, error = (both(stage, key) for key in ("disagreement", "step", "error"))
        rows.append(
            [
                str(stage.get("name", "")),
                disagreement,
                step,
                *("" if value is None else f"{value:.3%}" for value in (expected, excess)),
                error,
            ]
        )
    rows = [row for row in rows if any(row[1:])]
    return page.table(
        [
            "stage",
            "blocks disagree",
            "step across walls",
            "without a wall",
            "due to the wall",
            "error",
        ],
        rows,
    )


def _geometry_table(geometry: dict | None) -> tuple[str, str]:
    """The table of thresholds, and the choices that the numbers depend on as a sentence."""
    if not geometry or not geometry.get("thresholds"):
        return "", ""
    unit = geometry.get("unit") or "units of the dataset"
    rows = [
        [row.get("kind", ""), f"{row['tau']:.4g}"]
        + [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
        for row in geometry["thresholds"]
    ]
    named = (
        ("surface", "sampling"),
        ("distances", "distances"),
        ("crop", "crop"),
        ("alignment", "alignment"),
        ("distances clipped at", "max_distance"),
        ("ground truth thinned to a grid of", "truth_grid"),
        ("its mean nearest-neighbour distance", "truth_spacing"),
        ("accuracy (mean)", "accuracy"),
        ("completeness (mean)", "completeness"),
        ("accuracy (median)", "accuracy_median"),
        ("completeness (median)", "completeness_median"),
    )
    choices = "; ".join(
        f"{title}: {_format(geometry[key])}" for title, key in named if key in geometry
    )
    table = page.table(["threshold", unit, "precision", "recall", "F1"], rows)
    return table, f"Lengths in {unit}. {choices}."


def _depth_tables(final: dict) -> str:
    """Errors of every depth map, and of normals; "" without exact ones."""
    depth = final.get("depth") or {}
    normals = final.get("normal_errors_deg") or {}
    unit = depth.get("unit") or "units of the dataset"
    rows = [
        [
            kind,
            _format(row["median"], 3),
            _format(row["p90"], 3),
            f"{row['relative_median']:.3%}",
            f"{row['within_1_percent']:.1%}",
            f"{row['covered']:.1%}",
        ]
        for kind, row in depth.items()
        if isinstance(row, dict)
    ]
    table = page.table(
        [
            "depth",
            f"median, {unit}",
            f"90th percentile, {unit}",
            "median, of the depth",
            "within 1 %",
            "has a depth",
        ],
        rows,
    )
    names = {"all": "all pixels", "up_facing": "roofs and ground", "walls": "walls"}
    return table + page.table(
        ["normals", "median angle"],
        [[title, f"{normals[key]:.1f}°"] for key, title in names.items() if key in normals],
    )


def _settings_table(workdir: Workdir) -> str:
    path = workdir.config
    if not path.exists():
        return ""
    defaults = {name: value for name, _, value in settings_file.leaves(Settings())}
    changed = [
        [f"config.{name}", repr(value), repr(defaults.get(name))]
        for name, _, value in settings_file.leaves(settings_file.load(path))
        if value != defaults.get(name)
    ]
    return (
        page.table(["setting", "value", "default"], changed, "words")
        or "<p>All settings have their defaults.</p>"
    )


def write_report(
    workdir: Workdir,
    *,
    title: str = "",
    curves: Curves | None = None,
    timings: dict[str, float] | None = None,
    up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0),
    num_views: int = 4,
) -> Path:
    """Writes workdir/report.html from what lies in the workdir; what is not there is left out.

    Looks at metrics.json, config.json, per_view.json, before/, the newest test/ours_<step>,
    mesh/mesh.ply and the files of `write_error_files` beside it.

    Args:
        workdir: folder of a run.
        title: of the page; "" = the folder's name.
        curves: chart -> line -> (steps, values); `curves_from_rows` makes them from a log.
        timings: name -> seconds, of parts that are no stages in metrics.json (mesh, evaluation).
        up: f64[3], which way is up in the dataset's frame, for the pictures of the mesh.
        num_views: test views shown.
    Returns:
        The path of the report.
    Raises:
        InputError: a file is damaged, or the disk is full.
    """
    with files.reading(
        workdir.root,
        "a run with whole JSON files (metrics.json, per_view.json, partition.json)",
        "run `python -m cosurfgs_jax.evaluate` again, or restore them",
    ):
        parts = _parts(workdir, curves, timings or {}, np.asarray(up, np.float64), num_views)
    text = page.document(title or workdir.root.resolve().name, "cosurfgs_jax report", parts)
    path = workdir.report
    files.write_text(
        path, text.encode("utf-8", "replace").decode()
    )  # JSON can hold what is no text
    return path


def _parts(
    workdir: Workdir,
    curves: Curves | None,
    timings: dict[str, float],
    up: np.ndarray,
    num_views: int,
) -> list[str]:
    """The sections of the page; see `write_report`."""
    metrics = files.read_json_object(workdir.metrics) if workdir.metrics.exists() else {}
    final = metrics.get("final") or {}
    geometry, choices = _geometry_table(metrics.get("geometry"))
    charts = "".join(line_chart(name, lines) for name, lines in (curves or {}).items())
    scores = page.table(
        ["score", "value"],
        [
            [name.replace("_", " "), _format(value, 5)]
            for name, value in final.items()
            if not isinstance(value, dict)
        ],
    )
    return [
        _key_numbers(metrics),
        page.section(
            "Test views",
            _view_pictures(workdir, num_views),
            "Photographs that training did not see. Depth: near is bright. Normals: red right, "
            "green up, blue "
            "towards the viewer.",
        ),
        page.section(
            "Mesh",
            _mesh_pictures(workdir, up),
            "Drawn without perspective. Reddish parts are seen from behind.",
        ),
        page.section(
            "Error of the surface",
            error_pictures(workdir, up),
            "Left, the mesh coloured by the distance to ground truth: bright parts are wrong, grey "
            "ones lie outside "
            "of what is compared. Right, ground truth coloured by the distance to the mesh: bright "
            "parts are missing "
            "there. The scale ends at the largest threshold of the scores.",
        ),
        page.section("Course of training", f'<div class="charts">{charts}</div>' if charts else ""),
        page.section(
            "Partition",
            _partition(workdir),
            "The cells that blocks train, with their photographs and SfM points.",
        ),
        page.section("Stages", _stage_table(metrics, timings)),
        page.section(
            "Depth at the seams",
            _seam_table(metrics),
            "Medians over pixels as shares of the depth, in the band along the walls between cells "
            "and, in brackets, "
            "elsewhere. Blocks disagree: whole local models of two blocks about the same pixels, "
            "before they are "
            "cropped. Step: the jump of the merged model's depth across a wall beyond its slope. "
            "Without a wall: "
            "that jump at the same places in models that are of one piece there, for edges and "
            "roughness make jumps "
            "too; it is taken off in squares, and what is left is due to the wall.",
        ),
        page.section(
            "Scores on test views",
            scores,
            "On 8-bit images read back from files; means over views. 'Color corrected' is after a "
            "quadratic "
            "colour fit to each photograph, which hides differences of exposure. LPIPS is not "
            "computed.",
        ),
        page.section(
            "Depth and normals against exact ones, test views",
            _depth_tables(final),
            "Means over views. Median and 90th percentile are over the pixels that have a depth; "
            "'within 1 %' is the "
            "share of all pixels with an exact depth whose error is at most 1 % of it. Pixels "
            "through which more than "
            "half of the light passes have none. Walls: more than 60 degrees from up.",
        ),
        page.section("Surface against ground truth", geometry, choices),
        page.section("Settings that differ from the defaults", _settings_table(workdir)),
    ]
