"""The tables of the report."""

from typing import Any

from cosurfgs_jax import metrics, settings_file
from cosurfgs_jax.report import page
from cosurfgs_jax.report.charts import short_number
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.report.text import DATASET_UNITS, format_duration, format_percent, format_value
from cosurfgs_jax.settings import Settings


def key_numbers(given: ReportInput) -> str:
    """The first numbers of the page, as tiles."""
    final = given.final
    numbers = [
        (f"{final[key]:.{digits}f}{end}", name)
        for key, name, digits, end in (
            ("psnr", "PSNR, test views", 2, " dB"),
            ("psnr_color_corrected", "PSNR, colours fitted", 2, " dB"),
            ("psnr_nearest_view", "PSNR, nearest exposure", 2, " dB"),
            ("ssim", "SSIM, test views", 3, ""),
            ("lpips", "LPIPS, test views", 3, ""),
        )
        if final.get(key) is not None
    ]
    if final.get("num_surfels") is not None:
        numbers.append((short_number(final["num_surfels"]), "surfels"))
    numbers += _geometry_numbers(given.geometry)
    seconds = [stage["seconds"] for stage in given.stages if stage.get("seconds") is not None]
    if seconds:
        numbers.append((format_duration(sum(seconds)), "time of all stages"))
    return page.tiles(numbers) if numbers else ""


def _geometry_numbers(geometry: dict[str, Any]) -> list[tuple[str, str]]:
    if not geometry.get("thresholds"):
        return []
    unit = geometry.get("unit") or ""
    first = geometry["thresholds"][0]
    numbers = [(f"{first['f1']:.3f}", f"F1 at {first['tau']:.3g} {unit}".strip())]
    numbers += [
        (f"{geometry[key]:.3g} {unit}".strip(), key)
        for key in ("accuracy", "completeness")
        if key in geometry
    ]
    return numbers


def stage_table(given: ReportInput) -> str:
    """Scores, time and memory of every stage, and the time of what follows them."""
    header = [
        "stage",
        "steps",
        "time",
        "surfels",
        "PSNR",
        "SSIM",
        "PSNR at seams",
        "merged model",
        "all blocks",
        "compact",
        "checkpoint",
        "sent by a device",
        "peak per device",
    ]
    timings = [[name, format_duration(seconds)] for name, seconds in given.timings.items()]
    return page.table(header, [_stage_row(stage) for stage in given.stages]) + page.table(
        ["part", "time"], timings
    )


def _stage_row(stage: dict[str, Any]) -> list[str]:
    counts = stage.get("num_surfels") or []
    if not isinstance(counts, list):
        counts = [counts]
    surfels = f"{sum(counts):,}" if counts else ""
    if len(counts) > 1:
        surfels += f" in {len(counts)} blocks"
    duration = ""
    if stage.get("seconds") is not None:
        duration = format_duration(stage["seconds"])
    return [
        str(stage.get("name", "")),
        format_value(stage.get("steps")),
        duration,
        surfels,
        format_value(stage.get("psnr_test")),
        format_value(stage.get("ssim_test")),
        format_value(stage.get("psnr_seam")),
        _megabytes(stage.get("bytes_model")),
        _megabytes(stage.get("bytes_parameters")),
        _megabytes(stage.get("bytes_compact")),
        _checkpoint_size(stage),
        _megabytes(stage.get("bytes_sent")),
        _megabytes(stage.get("peak_bytes_per_device")),
    ]


def _checkpoint_size(stage: dict[str, Any]) -> str:
    """As it is saved, and what stays of it."""
    kept = _megabytes(stage.get("bytes_checkpoint_model"))
    saved = _megabytes(stage.get("bytes_checkpoint"))
    return f"{saved} ({kept} stay)" if saved and kept else saved


def _megabytes(num_bytes: int | None) -> str:
    if not num_bytes:
        return ""
    size = num_bytes / 2**20
    return f"{size:,.0f} MB" if size >= 10 else f"{size:.1f} MB"


def seam_table(given: ReportInput) -> str:
    """Depth at the seams after each stage; "" where none was measured."""
    header = [
        "stage",
        "blocks disagree",
        "step across walls",
        "without a wall",
        "due to the wall",
        "error",
    ]
    rows = []
    for stage in given.stages:
        numbers = [
            _seam_and_rest(stage, "disagreement"),
            _seam_and_rest(stage, "step"),
            format_percent(stage.get("depth_step_expected")),
            format_percent(stage.get("depth_step_excess")),
            _seam_and_rest(stage, "error"),
        ]
        if any(numbers):
            rows.append([str(stage.get("name", "")), *numbers])
    return page.table(header, rows)


def _seam_and_rest(stage: dict[str, Any], key: str) -> str:
    seam = format_percent(stage.get(f"depth_{key}_seam"))
    rest = format_percent(stage.get(f"depth_{key}_rest"))
    return f"{seam} ({rest})" if rest else seam


def score_table(given: ReportInput) -> str:
    """All single numbers of the final scores."""
    rows = [
        [name.replace("_", " "), format_value(value, 5)]
        for name, value in given.final.items()
        if not isinstance(value, dict)
    ]
    return page.table(["score", "value"], rows)


def geometry_table(given: ReportInput) -> str:
    """Scores of the surface at every threshold, below the choices that they depend on."""
    geometry = given.geometry
    if not geometry.get("thresholds"):
        return ""
    unit = geometry.get("unit") or DATASET_UNITS
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
        f"{title}: {format_value(geometry[key])}" for title, key in named if key in geometry
    )
    table = page.table(["threshold", unit, "precision", "recall", "F1"], rows)
    return page.note(f"Lengths in {unit}. {choices}.") + table


def class_table(given: ReportInput) -> str:
    """Normals and scores of the surface on walls, roofs and ground; "" where they are not known."""
    classes = given.geometry.get("classes") or {}
    if not classes:
        return ""
    unit = given.geometry.get("unit") or DATASET_UNITS
    rows = []
    for name, scores in classes.items():
        normal = scores["normal_deg"] or {}
        for row in scores["thresholds"]:
            rows.append(
                [
                    f"{name}, {scores['share_of_truth']:.0%}",
                    format_value(normal.get("median"), 3),
                    format_value(normal.get("p90"), 3),
                    format_value(normal.get("median_slope_error"), 3),
                    f"{row['tau']:.4g}",
                    *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1")),
                ]
            )
    header = ["part of the truth", "normals, median deg", "90th percentile", "slope error, median"]
    header += [f"threshold, {unit}"]
    note = page.note(f"Parts {given.geometry.get('class_choices', '')}.")
    return note + page.table([*header, "precision", "recall", "F1"], rows)


def confidence_table(given: ReportInput) -> str:
    """Distances of the mesh to the truth by the confidence of its vertices; "" where they are not
    known.
    """
    scored = given.geometry.get("confidence") or []
    if not scored:
        return ""
    unit = given.geometry.get("unit") or DATASET_UNITS
    rows = [
        [
            metrics.photographs_of(row),
            format_percent(row["share"]),
            *(f"{row[key]:.4g}" for key in ("median", "p90")),
            f"{row['precision']:.4f}",
        ]
        for row in scored
    ]
    header = ["photographs", "of the vertices", f"distance, median, {unit}", "90th percentile"]
    return page.table([*header, f"precision at {scored[0]['tau']:.4g}"], rows)


def depth_tables(given: ReportInput) -> str:
    """Errors of every depth map, and of normals; "" without exact ones."""
    depth = given.final.get("depth") or {}
    normals = given.final.get("normal_errors_deg") or {}
    unit = depth.get("unit") or DATASET_UNITS
    header = [
        "depth",
        f"median, {unit}",
        f"90th percentile, {unit}",
        "median, of the depth",
        "within 1 %",
        "has a depth",
    ]
    rows = [
        [
            kind,
            format_value(row["median"], 3),
            format_value(row["p90"], 3),
            f"{row['relative_median']:.3%}",
            f"{row['within_1_percent']:.1%}",
            f"{row['covered']:.1%}",
        ]
        for kind, row in depth.items()
        if isinstance(row, dict)
    ]
    names = {"all": "all pixels", "up_facing": "roofs and ground", "walls": "walls"}
    return page.table(header, rows) + page.table(
        ["normals", "median angle"],
        [[title, f"{normals[key]:.1f}°"] for key, title in names.items() if key in normals],
    )


def settings_table(given: ReportInput) -> str:
    """Settings that differ from their defaults, and what was given up for lack of memory."""
    path = given.workdir.config
    if not path.exists():
        return ""
    defaults = {name: value for name, _, value in settings_file.leaves(Settings())}
    changed = [
        [f"config.{name}", repr(value), repr(defaults.get(name))]
        for name, _, value in settings_file.leaves(settings_file.load(path))
        if value != defaults.get(name)
    ]
    text = "<p>All settings have their defaults.</p>"
    if changed:
        text = page.table(["setting", "value", "default"], changed, "words")
    given_up = [
        [f"config.{row.name}", repr(row.used), repr(row.asked)]
        for row in settings_file.read_given_up(given.workdir)
    ]
    if given_up:
        header = ["given up for lack of memory", "used", "asked for"]
        text += page.table(header, given_up, "words")
    return text
