"""Scores of a trained model: renders against photographs, its surface against ground truth; and
the files of 3DGS tools.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files, metrics, photograph, pictures
from cosurfgs_jax.data.ground_truth import GroundTruth
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs.view_scores import NOTHING_MORE, TITLES, MoreScores, scores_of_view
from cosurfgs_jax.raster.outputs import MIN_PLANE_ALPHA
from cosurfgs_jax.workdir import DEPTHS, NORMALS, PHOTOGRAPHS, RENDERS, TEST_NAMES, Workdir

_log = logging.getLogger(__name__)

# Kind -> name among the maps.
DEPTH_MAPS = {"expected": "depth", "median": "median_depth", "plane": "plane_depth"}
_DEPTH_CHOICES = "medians over pixels that stop half of the light, means over views"
PICTURE_KINDS = (RENDERS, PHOTOGRAPHS, DEPTHS, NORMALS)


def _geometry_errors(
    maps: dict[str, np.ndarray], depth_path: str | None, mask: np.ndarray | None, up
) -> dict:
    """Errors of a view's depth maps and normals where exact ones are known: {"depth": ...,
    "normal_error_deg": ...}, or {}.
    """
    if depth_path is None or "depth" not in maps:
        return {}
    true = files.read_arrays(depth_path, ("depth",), optional=("normal",))
    true_depth = true["depth"]
    true_normal = true.get("normal")
    if true_depth.shape != maps["depth"].shape:
        _log.info(
            "depth and normals of this view are not scored: exact depth is there at %s, the render "
            "is %s",
            *("x".join(map(str, shape[::-1])) for shape in (true_depth.shape, maps["depth"].shape)),
        )
        return {}
    # Where the transmittance is above 0.5 there is no surface.
    is_solid = np.asarray(maps["alpha"]) >= MIN_PLANE_ALPHA
    depth = {
        kind: errors
        for kind, name in DEPTH_MAPS.items()
        if maps.get(name) is not None
        and (errors := metrics.depth_errors(np.where(is_solid, maps[name], 0), true_depth, mask))
        is not None
    }
    if not depth:
        return {}
    errors: dict = {"depth": depth}
    if true_normal is not None and maps.get("normal") is not None:
        both = (true_depth > 0) & (np.asarray(maps["depth"]) > 0) & is_solid
        if mask is not None:
            both &= mask
        if both.any():
            errors["normal_error_deg"] = metrics.normal_errors(
                maps["normal"], true_normal, both, up
            )
    return errors


def _evaluate_view(
    maps: dict[str, np.ndarray], photo: np.ndarray, name: str, folder: Path, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the pictures of a view; render and photograph as read back, u8[H,W,3]."""
    color = np.asarray(maps["color"], np.float32)
    if color.shape[:2] != photo.shape[:2]:
        raise InputError(
            f"render of {name}: expected the photograph's size {photo.shape[:2]}, got "
            f"{color.shape[:2]}"
        )
    pictures.write_image(folder / RENDERS / name, pictures.to_uint8(color))
    pictures.write_image(folder / PHOTOGRAPHS / name, photo[..., :3])
    if maps.get("depth") is not None:
        pictures.write_image(folder / DEPTHS / name, pictures.colorize_depth(maps["depth"]))
    if maps.get("normal") is not None:
        pictures.write_image(
            folder / NORMALS / name, pictures.colorize_normals(maps["normal"], pose)
        )
    render, photo = (pictures.read_image(folder / kind / name) for kind in (RENDERS, PHOTOGRAPHS))
    return render, photo


def _mean_of(rows: list[dict]) -> dict:
    """Means over rows of nested dicts, of each number over the rows that have it."""
    means = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        means[key] = _mean_of(values) if isinstance(values[0], dict) else float(np.mean(values))
    return means


def _geometry_means(rows: dict[str, dict], unit: str) -> dict:
    """What `summarize` says of geometry, from the views' own errors."""
    means = _mean_of([row for row in rows.values() if row])
    found = {}
    if "expected" in means.get("depth", {}):
        found["depth_error"] = means["depth"]["expected"]["median"]
    if "all" in means.get("normal_error_deg", {}):
        found["normal_error_deg"] = means["normal_error_deg"]["all"]
        found["normal_errors_deg"] = means["normal_error_deg"]
    if "depth" in means:
        found["depth"] = means["depth"] | {"unit": unit, "choices": _DEPTH_CHOICES}
    return found


def summarize_geometry(scores: dict) -> str:
    """One line on depth and normals from what `summarize` returns; "" without exact depth."""
    depth = scores.get("depth")
    if not depth:
        return ""
    parts = [
        f"{kind} {depth[kind]['median']:.3g} {depth['unit']} "
        f"({depth[kind]['relative_median']:.3%}, "
        f"{depth[kind]['within_1_percent']:.1%} within 1 %)"
        for kind in DEPTH_MAPS
        if kind in depth
    ]
    text = (
        f"median error of depth ({scores['num_test_views']} views; {depth['choices']}): "
        f"{', '.join(parts)}"
    )
    if "normal_errors_deg" in scores:
        names = {"all": "", "up_facing": " on roofs and ground", "walls": " on walls"}
        text += "; of normals: " + ", ".join(
            f"{scores['normal_errors_deg'][key]:.1f} deg{name}"
            for key, name in names.items()
            if key in scores["normal_errors_deg"]
        )
    return text


def score_views(
    render_fn: Callable[[int], dict[str, np.ndarray]],
    scene: Scene,
    image_store,
    pictures_of: dict[str, int],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    more: MoreScores = NOTHING_MORE,
) -> dict[str, dict[str, Any]]:
    """Draws views, writes their pictures and compares them with the photographs.

    Writes folder/{renders,gt,depth,normal}/<picture>.

    Args:
        render_fn: view number -> maps "color" f32[H,W,3], "alpha" f32[H,W], and, if there are
            pictures of them to be, "depth" f32[H,W] (dataset unit, 0 = nothing) and "normal"
            f32[H,W,3] (dataset axes); "median_depth" and "plane_depth" are scored too.
        scene: that the views are of.
        image_store: `load(view)` gives u8[H,W,3] or, with a mask, u8[H,W,4]; masked pixels do not
            count.
        pictures_of: name of a picture -> view.
        folder: of the pictures.
        progress: called with (done, total).
        more: what is measured besides.
    Returns:
        Name of a picture -> "image" (the photograph's name), "scores" (see `summarize`) and, where
        there is exact depth, "geometry" ({} or {"depth": {"expected" | "median" | "plane": see
        `metrics.depth_errors`}, "normal_error_deg": see `metrics.normal_errors`}). JSON data.
        Views whose mask leaves nothing are left out.
    """
    rows = {}
    truth = scene.ground_truth
    for done, (name, view) in enumerate(pictures_of.items(), start=1):
        photo = image_store.load(view)
        mask = photograph.mask_of(photo)
        if mask is not None and not mask.any():
            _log.warning(
                "%s: its mask leaves nothing of it, so it is not scored", scene.image_names[view]
            )
            continue
        maps = render_fn(view)
        row: dict[str, Any] = {"image": scene.image_names[view]}
        render, shown = _evaluate_view(
            maps, photo, name, folder, scene.views.camera_from_dataset[view]
        )
        transform = None if more.transforms is None else more.transforms[view]
        row["scores"] = scores_of_view(
            render, shown, mask, transform=transform, lpips_weights=more.lpips_weights
        )
        if truth is not None:
            row["geometry"] = _geometry_errors(maps, truth.depth_path(view), mask, scene.up)
        rows[name] = row
        if progress:
            progress(done, len(pictures_of))
    return rows


def pictures_of_views(views: np.ndarray) -> dict[str, int]:
    """Name of the picture of each view -> the view.

    Raises:
        InputError: no view.
    """
    if not len(views):
        raise InputError(
            "test views: expected at least one, got none; choose another config.data.split, e.g. "
            "every8"
        )
    return {f"{number:05d}.png": int(view) for number, view in enumerate(views)}


def summarize(
    rows: dict[str, dict[str, Any]], scene: Scene, workdir: Workdir, step: int
) -> dict[str, Any]:
    """Writes the scores of all views that count.

    Writes `Workdir.test(step)`/views.json (picture name -> image name), and results.json and
    per_view.json in the form of 3DGS tools; per_view.json also has "geometry": picture name -> see
    `score_views`. Pictures there of other names are deleted: of an earlier evaluation, which may
    have had more views. LPIPS is there only where its weights are given: this package carries none.

    Args:
        rows: of `score_views`, of all views.
        scene: that they are of.
        workdir: of the run.
        step: of training, for the names.
    Returns:
        "psnr", "ssim" and, with its weights, "lpips" and "lpips_unscaled" (means over views, on
        8-bit images read back), "psnr_color_corrected", "ssim_color_corrected", ... (after a
        quadratic colour fit per image, see `metrics.color_correct`), with `MoreScores.transforms`
        "psnr_nearest_view", ... (with the exposure of another view), "num_test_views", and
        "per_view", a dict from image name to the same numbers. For datasets with exact depth also,
        all means over views: "depth_error" (the median over pixels of the error of expected depth,
        dataset unit), "normal_error_deg" (the median over pixels), "depth" ({"unit", "choices", and
        of each depth map the numbers of `metrics.depth_errors`}) and "normal_errors_deg"
        (`metrics.normal_errors`).
    Raises:
        InputError: no row, or a full disk.
    """
    if not rows:
        raise InputError(
            "test views: expected one whose mask leaves something, got none; choose another "
            "config.data.split, or mend the masks"
        )
    rows = dict(sorted(rows.items()))
    folder = workdir.test(step)
    for kind in PICTURE_KINDS:
        for picture in (folder / kind).glob("*.png"):
            if picture.name not in rows:
                picture.unlink()
    files.write_json(folder / TEST_NAMES, {name: row["image"] for name, row in rows.items()})
    scores = {name: row["scores"] for name, row in rows.items()}
    geometry = {name: row["geometry"] for name, row in rows.items() if "geometry" in row}
    means = _mean_of(list(scores.values()))
    if scene.ground_truth is not None and any(geometry.values()):
        means |= _geometry_means(geometry, scene.ground_truth.unit)
    _write_results(workdir, folder.name, means, scores, geometry)
    return means | {
        "num_test_views": len(rows),
        "per_view": {
            row["image"]: row["scores"] | row.get("geometry", {}) for row in rows.values()
        },
    }


def take_pictures(source: Path, folder: Path) -> None:
    """Moves the pictures that `score_views` has written to another folder of the same disk."""
    with files.writing(folder):
        for kind in PICTURE_KINDS:
            for picture in sorted((source / kind).glob("*.png")):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                picture.replace(folder / kind / picture.name)


def _write_results(
    workdir: Workdir, model: str, means: dict, rows: dict[str, dict], geometry: dict[str, dict]
) -> None:
    """results.json and per_view.json in the form of 3DGS tools."""
    titles = {key: title for key, title in TITLES.items() if key in means}
    means_by_title = {title: means[key] for key, title in titles.items()}
    files.write_json(workdir.results, {model: means_by_title})
    per_view = {
        title: {name: row[key] for name, row in rows.items()} for key, title in titles.items()
    }
    if any(geometry.values()):
        per_view["geometry"] = {name: errors for name, errors in geometry.items() if errors}
    files.write_json(workdir.per_view, {model: per_view})


def compare_to_truth(
    surface, scene: Scene, truth_points: np.ndarray | None = None, unit: str = "", **choices
) -> metrics.Comparison | None:
    """A mesh or points against the true surface: the one protocol of `evaluate`, tests and
    benchmarks.

    Both sides are cropped to what at least two photographs show. The points of a generated dataset
    are those which two of its photographs see, and a mesh is also scored on its walls, roofs and
    ground apart. Of a user's points, those count that two photographs of the dataset see by its
    exact depth, or, where there is none, that no other ground truth hides
    (`metrics.SeenRegion.hidden_by`).

    Args:
        surface: (vertices f64[N,3], triangles i64[F,3]) or points f64[M,3], dataset frame.
        scene: whose views crop both sides, and whose ground truth is the default.
        truth_points: f64[G,3] of the user, dataset frame; None = those of the scene.
        unit: of `truth_points`.
        **choices: passed to `metrics.compare_surfaces`.
    Returns:
        None without ground truth.
    Raises:
        InputError: frames or units differ, or nothing is left after the crop.
    """
    region = metrics.SeenRegion(scene.views)
    truth = scene.ground_truth
    truth_mesh = None
    if truth_points is None:
        if truth is None:
            return None
        truth_points = truth.points
        unit = truth.unit
        truth_mesh = (truth.mesh_vertices, truth.mesh_triangles)
        region = dataclasses.replace(
            region, hiding="only points that two photographs see were given"
        )
        choices.setdefault("up", scene.up)
    elif truth is not None and (depth_of := _exact_depth(scene, truth)) is not None:
        region = dataclasses.replace(
            region, depth_of=depth_of, hiding="what the exact depth hides is left out"
        )
    else:
        choices.setdefault("is_hidden_by_truth", True)
    return metrics.compare_surfaces(
        surface, truth_points, truth_mesh=truth_mesh, region=region, unit=unit, **choices
    )


def _exact_depth(scene: Scene, truth: GroundTruth) -> Callable[[int], np.ndarray] | None:
    """View number -> exact depth f32[H,W]; None where a view lacks it, or has it in another size
    than the image.
    """
    found = (truth.depth_path(view) for view in range(scene.num_views))
    paths = [path for path in found if path]
    if len(paths) < scene.num_views:
        return None

    @functools.lru_cache(maxsize=1)
    def depth_of(view: int) -> np.ndarray:
        return files.read_arrays(paths[view], ("depth",))["depth"]

    if depth_of(0).shape != tuple(scene.views.image_sizes[0]):
        return None
    return depth_of


def final_part(scores: dict, num_surfels: int) -> dict:
    """The "final" part of metrics.json from what `summarize` returns."""
    return {key: value for key, value in scores.items() if key != "per_view"} | {
        "num_surfels": num_surfels
    }


def log_surface(geometry: dict[str, Any]) -> None:
    """Logs the scores of a surface (`Comparison.scores`)."""
    unit = geometry["unit"]
    _log.info(
        "surface: accuracy %.4g %s, completeness %.4g %s; crop: %s; %s; distances %s, clipped at "
        "%.4g %s; alignment: %s",
        geometry["accuracy"],
        unit,
        geometry["completeness"],
        unit,
        geometry["crop"],
        geometry["sampling"],
        geometry["distances"],
        geometry["max_distance"],
        unit,
        geometry["alignment"],
    )
    for row in geometry["thresholds"]:
        _log.info(
            "surface at %.4g %s (%s): precision %.3f, recall %.3f, F1 %.3f",
            row["tau"],
            unit,
            row["kind"],
            row["precision"],
            row["recall"],
            row["f1"],
        )
    for name, scores in geometry.get("classes", {}).items():
        _log.info("surface, %s", metrics.class_line(name, scores))
    for row in geometry.get("confidence", []):
        _log.info("surface, %s", metrics.confidence_line(row, unit))
