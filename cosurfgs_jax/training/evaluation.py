"""Scores of a trained model: pictures against photographs, its surface against the true one; files that others read."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import files, metrics, pictures
from cosurfgs_jax.errors import InputError

FORMAT = 1  # of metrics.json
_HIGHEST_PSNR = 100.0  # stands for "equal": JSON has no infinity
_ssim = jax.jit(metrics.ssim)


def _scores(render: np.ndarray, photo: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    a, b = (jnp.asarray(image, jnp.float32) / 255 for image in (render, photo))
    kept = None if mask is None else jnp.asarray(mask)
    return {"psnr": min(float(metrics.psnr(a, b, kept)), _HIGHEST_PSNR), "ssim": float(_ssim(a, b, kept))}


def _geometry_errors(maps: dict[str, np.ndarray], depth_path: str | None) -> dict[str, float]:
    """Medians over pixels of a view, where both the model and the exact depth have a surface."""
    if depth_path is None or "depth" not in maps:
        return {}
    with np.load(depth_path) as true:
        true_depth, true_normal = true["depth"], true["normal"] if "normal" in true else None
    depth = np.asarray(maps["depth"])
    if true_depth.shape != depth.shape:  # rendered at another size than the ground truth was written
        return {}
    both = (true_depth > 0) & (depth > 0) & (np.asarray(maps["alpha"]) >= 0.5)
    if not both.any():
        return {}
    errors = {"depth_error": float(np.median(np.abs(depth - true_depth)[both]))}
    if true_normal is not None and maps.get("normal") is not None:
        normal = np.asarray(maps["normal"], np.float64)[both]
        cosine = (normal * true_normal[both]).sum(axis=-1) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
        errors["normal_error_deg"] = float(np.degrees(np.median(np.arccos(np.clip(cosine, -1, 1)))))
    return errors


def _evaluate_view(maps: dict[str, np.ndarray], photo: np.ndarray, name: str, folder: Path, pose: np.ndarray,
                   depth_path: str | None) -> dict[str, float]:
    """Writes the pictures of a view and scores them as read back."""
    mask = photo[..., 3] >= 128 if photo.shape[-1] == 4 else None
    color = np.asarray(maps["color"], np.float32)
    if color.shape[:2] != photo.shape[:2]:
        raise InputError(f"render of {name}: expected the photograph's size {photo.shape[:2]}, got {color.shape[:2]}")
    pictures.write_image(folder / "renders" / name, pictures.to_uint8(color))
    pictures.write_image(folder / "gt" / name, photo[..., :3])
    if maps.get("depth") is not None:
        pictures.write_image(folder / "depth" / name, pictures.colorize_depth(maps["depth"]))
    if maps.get("normal") is not None:
        pictures.write_image(folder / "normal" / name, pictures.colorize_normals(maps["normal"], pose))
    render, photo = (pictures.read_image(folder / kind / name) for kind in ("renders", "gt"))
    scores = _scores(render, photo, mask)
    corrected = metrics.color_correct(render / np.float32(255), photo / np.float32(255), mask)
    scores |= {f"{key}_color_corrected": value
               for key, value in _scores(pictures.to_uint8(corrected), photo, mask).items()}
    return scores | _geometry_errors(maps, depth_path)


def evaluate_views(render_fn: Callable[[int], dict[str, np.ndarray]], scene, image_store, views: np.ndarray,
                   out_dir: str | Path, step: int, progress: Callable[[int, int], None] | None = None) -> dict:
    """Renders views, writes pictures and scores, and returns the scores.

    Writes out_dir/test/ours_<step>/{renders,gt,depth,normal}/00000.png, views.json (which photograph is which), and
    out_dir/results.json and per_view.json in the form of 3DGS tools. There is no LPIPS: it needs the weights of a
    network that this package does not carry.

    Args:
        render_fn: view number -> maps "color" f32[H,W,3], "alpha" f32[H,W], and, if there are pictures of them to be,
            "depth" f32[H,W] (dataset unit, 0 = nothing) and "normal" f32[H,W,3] (dataset axes).
        scene: with image_names, camera_from_world and ground_truth.
        image_store: `load(view)` gives u8[H,W,3] or, with a mask, u8[H,W,4]; masked pixels do not count.
        views: i64[n].
        out_dir: the workdir.
        step: of training, for the names.
        progress: called with (done, total).
    Returns:
        "psnr", "ssim" (means over views, on 8-bit images read back), "psnr_color_corrected", "ssim_color_corrected"
        (after a quadratic colour fit per image, see `metrics.color_correct`), "num_test_views", for datasets with exact
        depth "depth_error" (dataset unit) and "normal_error_deg" (means over views of the median over pixels), and
        "per_view", a dict from image name to the same numbers.
    Raises:
        InputError: no view, or a full disk.
    """
    if not len(views):
        raise InputError("test views: expected at least one, got none; choose another config.data.split, e.g. every8")
    out_dir = Path(out_dir)
    folder = out_dir / "test" / f"ours_{step}"
    for kind in ("renders", "gt", "depth", "normal"):  # an earlier evaluation may have had more views
        for stale in (folder / kind).glob("*.png"):
            stale.unlink()
    rows = {}
    truth = getattr(scene, "ground_truth", None)
    for number, view in enumerate(int(v) for v in views):
        depth_path = truth.depth_path(view) if truth is not None else None
        rows[f"{number:05d}.png"] = _evaluate_view(render_fn(view), image_store.load(view), f"{number:05d}.png", folder,
                                                   scene.camera_from_world[view], depth_path)
        if progress:
            progress(number + 1, len(views))
    names = {name: scene.image_names[int(view)] for name, view in zip(rows, views, strict=True)}
    files.write_json(folder / "views.json", names)
    # Means over the views that have a number: exact depth may be there for some only.
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    means = {key: float(np.mean([row[key] for row in rows.values() if key in row])) for key in keys}
    titles = {"ssim": "SSIM", "psnr": "PSNR", "ssim_color_corrected": "SSIM_color_corrected",
              "psnr_color_corrected": "PSNR_color_corrected"}
    files.write_json(out_dir / "results.json", {f"ours_{step}": {title: means[key] for key, title in titles.items()}})
    files.write_json(out_dir / "per_view.json", {f"ours_{step}": {
        title: {name: row[key] for name, row in rows.items()} for key, title in titles.items()}})
    return means | {"num_test_views": len(views), "per_view": {names[name]: row for name, row in rows.items()}}


def evaluate_surface(surface, scene, truth_points: np.ndarray | None = None, unit: str = "",
                     **choices) -> dict | None:
    """Scores of a mesh or of points against the true surface.

    Args:
        surface: (vertices f64[N,3], triangles i64[F,3]) or points f64[M,3], dataset frame.
        scene: with camera_from_world, intrinsics, image_sizes and ground_truth.
        truth_points: f64[G,3] of the user, dataset frame; None = those of the scene.
        unit: of `truth_points`.
        **choices: passed to `metrics.surface_scores`.
    Returns:
        The dict of `metrics.surface_scores`, cropped to what at least two photographs see; None without ground truth.
    Raises:
        InputError: frames or units differ, or nothing is left after the crop.
    """
    truth_mesh = None
    if truth_points is None:
        truth = scene.ground_truth
        if truth is None:
            return None
        truth_points, unit, truth_mesh = truth.points, truth.unit, (truth.mesh_vertices, truth.mesh_triangles)
    region = metrics.SeenRegion(scene.camera_from_world, scene.intrinsics, scene.image_sizes)
    return metrics.surface_scores(surface, truth_points, truth_mesh=truth_mesh, region=region, unit=unit, **choices)


def merge_metrics(path: str | Path, **parts) -> dict:
    """Updates metrics.json: parts that are given replace the old ones, the others stay.

    Args:
        path: of metrics.json; it is made if missing.
        **parts: "stages" (list), "final" (dict), "geometry" (dict or None); see `final_part`.
    Returns:
        The content as written.
    Raises:
        InputError: an unknown part, or a file of another format.
    """
    path = Path(path)
    unknown = set(parts) - {"stages", "final", "geometry"}
    if unknown:
        raise InputError(f"metrics.json: expected the parts stages, final, geometry, got {sorted(unknown)}")
    content = {"format": FORMAT, "stages": [], "final": None, "geometry": None}
    if path.exists():
        old = files.read_json(path)
        if not isinstance(old, dict) or old.get("format") != FORMAT:
            found = old.get("format") if isinstance(old, dict) else old
            raise InputError(f"{path}: expected format {FORMAT}, got {found!r}; move the file away")
        content |= old
    content |= parts
    files.write_json(path, content)
    return content


def final_part(scores: dict, num_surfels: int) -> dict:
    """The "final" part of metrics.json from what `evaluate_views` returns."""
    return {key: value for key, value in scores.items() if key != "per_view"} | {"num_surfels": num_surfels}
