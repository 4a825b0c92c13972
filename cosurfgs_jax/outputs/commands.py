"""What the programs after training do: scores, pictures, mesh, exported files, and the report.
Everything is in the dataset's frame.
"""

import collections
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files, metrics, pictures, report
from cosurfgs_jax.collab.merged_model import load_exposures
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.distributed.recording import recording
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import read_geo
from cosurfgs_jax.formats.ply import read_points_ply
from cosurfgs_jax.formats.torch_file import read_torch
from cosurfgs_jax.formats.transform_text import read_similarity
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.outputs import evaluation, exports, fused_mesh, scored_views
from cosurfgs_jax.outputs.map_frame import with_map_frame
from cosurfgs_jax.outputs.shards import Shards
from cosurfgs_jax.outputs.trained import Trained, load_trained
from cosurfgs_jax.outputs.view_scores import MoreScores, nearest_exposures
from cosurfgs_jax.part import Part
from cosurfgs_jax.run_record import note_seconds, read_timings
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.settings_file import read_given_up
from cosurfgs_jax.surface import Fused, mesh_files, read_mesh_ply
from cosurfgs_jax.training.run_log import Progress, read_history
from cosurfgs_jax.workdir import EXPORTS, MESH, PICTURES, SCORES, Workdir

_log = logging.getLogger(__name__)
_GIVEN_UNIT = "dataset units"  # of a point cloud that comes without one


def write_report(workdir: Workdir, frame: SceneFrame) -> Path:
    """report.html of what lies in the workdir now.

    Args:
        workdir: of the run.
        frame: of its scene.
    """
    curves = report.curves_from_rows(read_history(workdir))
    return report.write_report(workdir, curves=curves, timings=read_timings(workdir), frame=frame)


def _check_files_of_report(workdir: Workdir) -> None:
    """Reads what is added to, or shown, after the long work: a damaged file is said before it.

    Raises:
        InputError: one is damaged.
    """
    read_timings(workdir)
    workdir.read_metrics()
    read_given_up(workdir)
    read_geo(workdir.geo)
    read_history(workdir)


def read_truth(points_path: str, transform_path: str) -> np.ndarray | None:
    """True points f64[M,3] of a user, in the dataset's frame; None where no file is given.

    Args:
        points_path: PLY file, or "".
        transform_path: text file of the matrix from the dataset to the frame of these points; "" =
            they are in the dataset's.
    Raises:
        InputError: a file is not readable, or there is a matrix and no points.
    """
    if not points_path:
        if transform_path:
            raise InputError("--gt_transform: expected --gt_points with it, got none; give both")
        return None
    points = read_points_ply(points_path)
    if not transform_path:
        return points
    matrix = read_similarity(transform_path)
    return np.linalg.solve(matrix[:3, :3], (points - matrix[:3, 3]).T).T


def read_lpips_weights(paths: Sequence[str | os.PathLike]) -> metrics.LpipsWeights | None:
    """The weights of LPIPS in files of torch.save; None without files.

    Raises:
        InputError: a file is not readable, or they are not the weights of LPIPS.
    """
    if not paths:
        return None
    tables = []
    for path in paths:
        table = read_torch(Path(path).expanduser())
        if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
            raise InputError(f"{path}: expected the state of a network, got {type(table).__name__}")
        tables.append({key: value for key, value in table.items() if hasattr(value, "shape")})
    return metrics.weights_of(tables, ",".join(map(str, paths)))


def evaluate(
    settings: Settings,
    workdir: Workdir,
    truth: np.ndarray | None = None,
    lpips_weights: metrics.LpipsWeights | None = None,
    *,
    with_nearest_exposure: bool = False,
    part: Part | None = None,
) -> None:
    """Scores the model on the test views, and its mesh against the true surface if there are both.

    With `truth` the mesh is extracted first where it is missing. Where shards have scored the test
    views, their scores are taken, and the shards are deleted.

    Args:
        settings: see `load_trained`.
        workdir: of the run; gets test pictures, scores and the report.
        truth: f64[M,3], points of the true surface in the dataset's frame; None = those of the
            dataset, if it has any.
        lpips_weights: what LPIPS is measured with; None: it is not.
        with_nearest_exposure: test views are also scored with the exposure of the nearest training
            view.
        part: of the test views; only these are scored, and left as a shard. None = all.
    Raises:
        InputError: there are no test views and no surface to score, frames differ, a file of the
            workdir is damaged, or see `Shards`.
    """
    started = time.monotonic()
    if part is not None:
        trained = load_trained(settings, workdir)
        more = _more(trained, lpips_weights, with_nearest_exposure)
        with recording(workdir, "evaluate"):
            scored_views.make_shard(trained, part, more)
        return
    _check_files_of_report(workdir)
    if truth is not None and not workdir.mesh.exists():
        _log.info("there is no mesh to compare with the points yet; extracting it first")
        extract_mesh(settings, workdir)
    with workdir.writing(SCORES), workdir.writing(MESH):
        trained = load_trained(settings, workdir)
        more = _more(trained, lpips_weights, with_nearest_exposure)
        with recording(workdir, "evaluate"):
            seconds = _score(trained, workdir, truth, more)
        note_seconds(workdir, "evaluate", seconds + time.monotonic() - started)
        _log.info("report: %s", write_report(workdir, trained.partitioned.frame))


def _more(
    trained: Trained, lpips_weights: metrics.LpipsWeights | None, with_nearest_exposure: bool
) -> MoreScores:
    """What is measured besides."""
    more = MoreScores(lpips_weights)
    if not with_nearest_exposure:
        return more
    exposures = load_exposures(trained.settings, trained.workdir, trained.partitioned)
    return more._replace(transforms=nearest_exposures(trained.partitioned.scene, exposures))


def _score(trained: Trained, workdir: Workdir, truth: np.ndarray | None, more: MoreScores) -> float:
    """Scores of views and surface, and pictures; the seconds that shards took."""
    scene = trained.partitioned.scene
    has_truth = truth is not None or scene.ground_truth is not None
    if not len(scene.test_views) and not (workdir.mesh.exists() and has_truth):
        raise InputError(
            "config.data.split: expected test views to evaluate, got none; train with "
            "config.data.split=every8"
        )
    seconds = 0.0
    if len(scene.test_views):
        seconds = scored_views.score(trained, more)
    if workdir.mesh.exists():
        fused_mesh.say_of_another(trained)
        _score_surface(scene, workdir, truth)
    elif scene.ground_truth:
        _log.info("no mesh yet, so the surface was not scored; run `cosurfgs extract_mesh` first")
    return seconds


def _score_surface(scene: Scene, workdir: Workdir, truth: np.ndarray | None) -> None:
    """Scores the mesh against given points, or the dataset's ground truth. Without either, earlier
    scores of this mesh stay.
    """
    mesh = read_mesh_ply(workdir.mesh)
    comparison = evaluation.compare_to_truth(
        (mesh.vertices, mesh.triangles),
        scene,
        truth,
        "" if truth is None else _GIVEN_UNIT,
        has_vertex_distances=True,
        vertex_confidence=mesh.vertex_confidence,
    )
    if comparison is None:
        return
    workdir.merge_metrics(geometry=comparison.scores)
    report.drop_error_files(workdir)
    report.write_error_files(workdir, mesh, comparison)
    evaluation.log_surface(comparison.scores)


def choose_views(scene: Scene, choice: str) -> np.ndarray:
    """The views that a text names: "test", "train", "all", or image names with commas between.

    Raises:
        InputError: an unknown name, or no view.
    """
    groups = {
        "test": scene.test_views,
        "train": scene.train_views,
        "all": np.arange(scene.num_views),
    }
    if choice in groups:
        if not len(groups[choice]):
            raise InputError(
                f"--views={choice}: expected at least one view, got none; try --views=all"
            )
        return groups[choice]
    names = {name: view for view, name in enumerate(scene.image_names)}
    unknown = [name for name in choice.split(",") if name not in names]
    if unknown:
        raise InputError(
            f"--views: expected test, train, all or image names, got {unknown[0]!r}; there is for "
            "example "
            f"{scene.image_names[0]!r}"
        )
    return np.array([names[name] for name in choice.split(",")])


def render(settings: Settings, workdir: Workdir, out: str = "", choice: str = "test") -> None:
    """Writes colour, depth and normals of views as pictures, and the depth also as float32.

    Args:
        settings: see `load_trained`.
        workdir: of the run.
        out: folder; "" = `Workdir.renders`.
        choice: see `choose_views`.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(out)
        if not out:  # other folders are the user's to keep apart
            stack.enter_context(workdir.writing(PICTURES))
            folder = workdir.renders
        _render(load_trained(settings, workdir), folder, choice)


def _render(trained: Trained, folder: Path, choice: str) -> None:
    """Writes the pictures of the views that are chosen."""
    scene = trained.partitioned.scene
    views = choose_views(scene, choice)
    render_view = trained.render_fn(trained.seen_by(views).surfels)
    stems = _unique_stems([scene.image_names[view] for view in views])
    with Progress("render", len(views), about="draws colour, depth and normals") as progress:
        for number, (view, stem) in enumerate(zip(views, stems, strict=True)):
            _write_maps(render_view(int(view)), scene.views.camera_from_dataset[view], folder, stem)
            progress.update(number + 1)
    _log.info("%d views in %s", len(views), folder)


def _unique_stems(image_names: list[str]) -> list[str]:
    """Names for the pictures of views: without extensions where that tells them apart, and below
    the folder whatever the images are called.
    """
    names = [files.safe_name(name) for name in image_names]
    stems = [str(Path(name).with_suffix("")) for name in names]
    counts = collections.Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def _write_maps(maps: dict[str, np.ndarray], pose: np.ndarray, folder: Path, stem: str) -> None:
    shown = {
        "color": pictures.to_uint8(maps["color"]),
        "depth": pictures.colorize_depth(maps["depth"]),
        "normal": pictures.colorize_normals(maps["normal"], pose),
    }
    for kind, image in shown.items():
        pictures.write_image(folder / f"{stem}_{kind}.png", image)
    with files.atomic_path(folder / f"{stem}_depth.npz") as path:
        depths: dict[str, Any] = {
            name: maps[name] for name in ("depth", "median_depth", "plane_depth")
        }
        np.savez_compressed(path, **depths)


def extract_mesh(
    settings: Settings,
    workdir: Workdir,
    form: str = "ply",
    part: Part | None = None,
    *,
    force: bool = False,
) -> None:
    """Fuses the model's depth over all training views into workdir/mesh/mesh.ply. Where shards have
    fused it, their parts are joined, and the shards are deleted. A mesh that is there already, of
    this model and these settings, stays.

    Args:
        settings: see `load_trained`.
        workdir: of the run.
        form: "obj" or "glb": a file of that format beside mesh.ply, which everything else reads.
        part: of the place; only this is fused, and left as a shard. None = all.
        force: fuse anew whatever is there.
    Raises:
        InputError: the mesh would be empty (with the reason) or needs more room than there is, a
            library is missing, a file of the workdir is damaged, or see `Shards`.
    """
    started = time.monotonic()
    mesh_files.check_format(form)
    settings = with_map_frame(settings, workdir)
    if part is not None:
        trained = load_trained(settings, workdir)
        with recording(workdir, "extract_mesh"):
            fused_mesh.make_shard(trained, part)
        return
    _check_files_of_report(workdir)
    with workdir.writing(MESH) as scratch:
        trained = load_trained(settings, workdir)
        shards = fused_mesh.shards_of(trained)
        collected = shards.collect()
        choices = None
        if not collected and not force:
            choices = fused_mesh.reuse(trained, form)
        if choices is None:
            parts = [(shard.folder, Fused(**shard.note["fused"])) for shard in collected]
            with recording(workdir, "extract_mesh"):
                choices = fused_mesh.fuse(trained, scratch, form, parts)
            shards.delete()
            seconds = sum(shard.note["seconds"] for shard in collected)
            note_seconds(workdir, "mesh", seconds + time.monotonic() - started)
        fused_mesh.log_mesh(choices, workdir.mesh.with_suffix(f".{form}"))
        _log.info("report: %s", write_report(workdir, trained.partitioned.frame))


def export(
    settings: Settings, workdir: Workdir, form: str = "ply", part: Part | None = None
) -> None:
    """Writes the model to `Workdir.export` in a format that other programs read, and the report
    where it shows that. Where shards have made it, they are merged and deleted.

    Args:
        settings: see `load_trained`.
        workdir: of the run.
        form: name in `exports.FORMATS`.
        part: of the model; only this is made, and left as a shard. None = all.
    Raises:
        InputError: an unknown format, a missing package, what the format refuses, or see `Shards`.
    """
    chosen = exports.find_format(form)
    settings = with_map_frame(settings, workdir)
    chosen.check(settings)
    if part is not None:
        _export_shard(settings, workdir, chosen, part)
        return
    with workdir.writing(EXPORTS):
        trained = load_trained(settings, workdir)
        shards = _shards_of_export(trained, chosen)
        collected = shards.collect()
        with recording(workdir, f"export {form}"):
            if chosen.by_parts is not None and collected:
                found = [(shard.folder, shard.note) for shard in collected]
                chosen.by_parts.merge(trained, found, workdir.export)
            else:
                chosen.write(trained, workdir.export)
        shards.delete()
    if not chosen.is_in_report:
        return
    try:
        with workdir.writing(MESH):  # which it shows
            _log.info("report: %s", write_report(workdir, trained.partitioned.frame))
    except InputError as error:  # no reason to export it again
        _log.warning("the export is written, and the report is not: %s", error)


def _shards_of_export(trained: Trained, form: exports.ExportFormat) -> Shards:
    groups = () if form.by_parts is None else form.by_parts.groups
    command = f"export --format={form.name}"
    return Shards(trained.workdir, EXPORTS, command, trained.made_with(*groups))


def _export_shard(
    settings: Settings, workdir: Workdir, form: exports.ExportFormat, part: Part
) -> None:
    if form.by_parts is None:
        names = [each.name for each in exports.FORMATS if each.by_parts is not None]
        raise InputError(
            f"--shard, --format={form.name}: expected a format that shards can make "
            f"({', '.join(names)}), got one that is made as a whole; leave --shard out"
        )
    form.by_parts.check(settings)
    trained = load_trained(settings, workdir)
    with _shards_of_export(trained, form).making(part) as shard:
        if shard is None:
            return
        folder, note = shard
        with recording(workdir, f"export {form.name}"):
            note.update(form.by_parts.make(trained, part, folder))
