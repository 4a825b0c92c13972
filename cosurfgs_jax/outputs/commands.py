"""What is made of a trained model: scores, pictures, mesh, files, and the report. Everything is in
the dataset's frame.
"""

import collections
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import files, pictures, report, settings_file
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats import points as point_files
from cosurfgs_jax.formats.ply import read_points_ply
from cosurfgs_jax.formats.splat_ply import write_surfels_ply
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.outputs.merged_model import load_merged, stage_names, total_steps
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import PHASES, check_geo, geotiff, mesh_files, read_mesh_ply, write_dsm
from cosurfgs_jax.surface import extract_mesh as fuse_mesh
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, open_partitioned_scene
from cosurfgs_jax.training.run_log import Progress, read_history
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import merge_metrics

_log = logging.getLogger(__name__)
_MESH_PATH = Path("mesh") / "mesh.ply"
_TIMINGS = "timings.json"
EXPORT_FORMATS = ("ply", "dsm", "las", "points")
_GIVEN_UNIT = "dataset units"  # of a point cloud that comes without one


class Trained(NamedTuple):
    """A trained model and its place."""

    settings: Settings
    partitioned: PartitionedScene
    surfels: Surfels  # world frame
    step: int

    def render_fn(self, maps: str = "geometry") -> Callable[[int], dict[str, np.ndarray]]:
        """View number -> maps in the dataset's frame (see `make_render_fn`)."""
        return make_render_fn(
            self.surfels, self.partitioned.views, self.partitioned.frame, self.settings.raster, maps
        )


def load_trained(settings: Settings, workdir: Path) -> Trained:
    """The newest saved model of a workdir.

    Args:
        settings: those of the run, but for what may change after training
            (`settings_file.FREE_AFTER_TRAINING`).
        workdir: of the run.
    Raises:
        InputError: nothing was trained there yet, or the dataset has changed.
    """
    if not settings_file.has_begun(workdir):
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )
    partitioned = open_partitioned_scene(settings, workdir)
    surfels, step = load_merged(settings, workdir, partitioned)
    total = sum(
        total_steps(settings, name) for name in stage_names(settings, partitioned.partition)
    )
    if step < total:
        _log.info("the model is of step %d of %d: training is not finished", step, total)
    return Trained(settings, partitioned, jax.tree.map(jnp.asarray, surfels), step)


def _note_seconds(workdir: Path, name: str, seconds: float) -> None:
    path = workdir / _TIMINGS
    timings = files.read_json_object(path) if path.exists() else {}
    files.write_json(path, timings | {name: seconds})


def write_report(workdir: Path, up: np.ndarray) -> Path:
    """report.html of what lies in the workdir now."""
    rows = read_history(workdir)
    timings = files.read_json_object(workdir / _TIMINGS) if (workdir / _TIMINGS).exists() else {}
    return report.write_report(
        workdir, curves=report.curves_from_rows(rows), timings=timings, up=up
    )


def evaluate(settings: Settings, workdir: Path, gt_points: str = "") -> None:
    """Scores the model on the test views, and its mesh against the true surface if there are both.

    With `gt_points` the mesh is extracted first where it is missing.

    Args:
        settings: see `load_trained`.
        workdir: of the run; gets test/, results.json, per_view.json, metrics.json and report.html.
        gt_points: PLY file of true surface points in the dataset's frame; "" = those of the
            dataset, if it has any.
    Raises:
        InputError: there are no test views and no surface to score, a file is not readable, or
            frames differ.
    """
    started = time.monotonic()
    truth = read_points_ply(gt_points) if gt_points else None
    mesh_path = workdir / _MESH_PATH
    if gt_points and not mesh_path.exists():
        _log.info("there is no mesh to compare with %s yet; extracting it first", gt_points)
        extract_mesh(settings, workdir)
    trained = load_trained(settings, workdir)
    scene = trained.partitioned.scene
    views = scene.test_views
    if not len(views) and not (mesh_path.exists() and (gt_points or scene.ground_truth)):
        raise InputError(
            "config.data.split: expected test views to evaluate, got none; train with "
            "config.data.split=every8"
        )
    if len(views):
        with (
            ImageStore(scene, settings.data.host_memory_mb) as images,
            Progress("evaluate", len(views)) as progress,
        ):
            scores = evaluation.evaluate_views(
                trained.render_fn(),
                scene,
                images,
                views,
                workdir,
                trained.step,
                lambda done, total: progress.update(done),
            )
        merge_metrics(
            workdir / "metrics.json",
            final=evaluation.final_part(scores, int(np.asarray(trained.surfels.alive).sum())),
        )
        _log.info(
            "test views: PSNR %.2f dB (%.2f after colour correction), SSIM %.4f over %d views",
            scores["psnr"],
            scores["psnr_color_corrected"],
            scores["ssim"],
            scores["num_test_views"],
        )
        if geometry_line := evaluation.summarize_geometry(scores):
            _log.info("test views: %s", geometry_line)
    if mesh_path.exists():
        mesh = read_mesh_ply(mesh_path)
        comparison = evaluation.compare_to_truth(
            (mesh.vertices, mesh.triangles),
            scene,
            truth,
            _GIVEN_UNIT if gt_points else "",
            has_vertex_distances=True,
        )
        if comparison is not None:  # else what earlier truth said of this mesh stays
            merge_metrics(workdir / "metrics.json", geometry=comparison.scores)
            report.drop_error_files(mesh_path.parent)
            report.write_error_files(mesh_path.parent, mesh, comparison)
            _log_surface(comparison.scores)
    elif scene.ground_truth:
        _log.info(
            "no mesh yet, so the surface was not scored; run `python -m cosurfgs_jax.extract_mesh` "
            "first"
        )
    _note_seconds(workdir, "evaluate", time.monotonic() - started)
    _log.info("report: %s", write_report(workdir, scene.up))


def _log_surface(geometry: dict) -> None:
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


def render(settings: Settings, workdir: Path, out: str = "", choice: str = "test") -> None:
    """Writes colour, depth and normals of views as pictures, and the depth also as float32.

    Args:
        settings: see `load_trained`.
        workdir: of the run.
        out: folder; "" = workdir/renders.
        choice: see `choose_views`.
    """
    trained = load_trained(settings, workdir)
    scene = trained.partitioned.scene
    folder = Path(out) if out else workdir / "renders"
    views = choose_views(scene, choice)
    render_view = trained.render_fn()
    names = [
        files.safe_name(scene.image_names[view]) for view in views
    ]  # they stay below the folder, whatever they are
    stems = [str(Path(name).with_suffix("")) for name in names]
    counts = collections.Counter(stems)
    with Progress("render", len(views)) as progress:
        for done, view in enumerate(views):
            stem = stems[done] if counts[stems[done]] == 1 else names[done]
            maps = render_view(int(view))
            pictures.write_image(folder / f"{stem}_color.png", pictures.to_uint8(maps["color"]))
            pictures.write_image(
                folder / f"{stem}_depth.png", pictures.colorize_depth(maps["depth"])
            )
            pictures.write_image(
                folder / f"{stem}_normal.png",
                pictures.colorize_normals(maps["normal"], scene.views.camera_from_dataset[view]),
            )
            with files.atomic_path(folder / f"{stem}_depth.npz") as path:
                np.savez_compressed(
                    path, **{name: maps[name] for name in ("depth", "median_depth", "plane_depth")}
                )
            progress.update(done + 1)
    _log.info("%d views in %s", len(views), folder)


def extract_mesh(settings: Settings, workdir: Path, form: str = "ply") -> None:
    """Fuses the model's depth over all training views into workdir/mesh/mesh.ply.

    Args:
        settings: see `load_trained`.
        workdir: of the run.
        form: "obj" or "glb": a file of that format beside mesh.ply, which everything else reads.
    Raises:
        InputError: the mesh would be empty (with the reason) or needs more room than there is, or a
            library is missing.
    """
    started = time.monotonic()
    mesh_files.check_format(form)
    trained = load_trained(settings, workdir)
    scene = trained.partitioned.scene
    num_views = len(trained.partitioned.scene.train_views)
    with Progress("mesh", len(PHASES) * num_views) as progress:

        def tell(what: str, done: int, total: int) -> None:
            if what != "extract":  # comes amid "fuse"
                progress.update(num_views * PHASES.index(what) + num_views * done // total)

        choices = fuse_mesh(
            trained.render_fn(),
            scene,
            scene.train_views,
            trained.settings.surface,
            workdir / _MESH_PATH,
            form=form,
            scratch_dir=workdir,
            progress=tell,
        )
    report.drop_error_files((workdir / _MESH_PATH).parent)
    merge_metrics(workdir / "metrics.json", geometry=None)  # it was another mesh's
    files.write_json(workdir / _MESH_PATH.with_suffix(".json"), choices)
    _note_seconds(workdir, "mesh", time.monotonic() - started)
    _log.info(
        "mesh: %d triangles, voxel size %.4g, in %s",
        choices["num_triangles"],
        choices["voxel_size"],
        workdir / _MESH_PATH.with_suffix(f".{form}"),
    )
    _log.info("report: %s", write_report(workdir, scene.up))


def _export_surfels(trained: Trained, folder: Path) -> None:
    surfels = trained.partitioned.frame.surfels_to_dataset(trained.surfels)
    for kind in ("2d", "3dgs"):
        path = folder / f"point_cloud_{kind}.ply"
        count = write_surfels_ply(path, surfels, kind)
        _log.info("%d surfels in %s", count, path)


def _export_points(trained: Trained, folder: Path, form: str) -> None:
    scene = trained.partitioned.scene
    geo = trained.settings.geo
    if form == "las":
        check_geo(scene.up, geo)
    points = point_files.points_of(
        trained.partitioned.frame.surfels_to_dataset(trained.surfels),
        scene.views.centers,
    )
    path = folder / ("points.las" if form == "las" else "points.ply")
    if form == "las":
        point_files.write_points_las(path, points, geo.offset_xyz(), geo.epsg)
    else:
        point_files.write_points_ply(path, points)
    _log.info("%d points in %s", len(points.positions), path)


def _export_dsm(trained: Trained, folder: Path) -> None:
    started = time.monotonic()
    settings = trained.settings
    partitioned = trained.partitioned
    with Progress("height map, percent", 100) as progress:
        found = write_dsm(
            folder / "dsm.tif",
            folder / "orthophoto.tif",
            trained.surfels,
            partitioned.frame,
            partitioned.scene,
            settings.geo,
            memory_mb=settings.surface.memory_mb,
            backend=settings.raster.backend,
            progress=lambda done, total: progress.update(100 * done // total),
        )
    files.write_json(
        folder / "dsm.json",
        found | {"step": trained.step, "seconds": round(time.monotonic() - started, 1)},
    )
    _log.info(
        "height map and orthophoto: %dx%d pixels of %.4g, %.0f %% covered, in %s",
        found["width"],
        found["height"],
        found["pixel_size"],
        100 * found["covered_share"],
        folder,
    )
    figures = found["agreement"]["visible_points"]
    if figures:
        _log.info(
            "SfM points: median difference %.3g pixels, signed %+.3g (height map minus point)",
            figures["median_absolute_pixels"],
            figures["median_signed_pixels"],
        )


def export(settings: Settings, workdir: Path, form: str = "ply") -> None:
    """Writes the model to workdir/export/ in a format that other programs read.

    Args:
        settings: see `load_trained`; `geo` is used by "las" and "dsm", `surface.memory_mb` and
            `raster.backend` by "dsm".
        workdir: of the run.
        form: "ply": point_cloud_2d.ply (two scales) and point_cloud_3dgs.ply (three scales, for
            viewers of 3DGS); "points": points.ply, the centres with colours and normals; "las":
            points.las, without normals; "dsm": dsm.tif (heights), orthophoto.tif, and dsm.json with
            what was chosen and how well the heights fit the SfM points.
    Raises:
        InputError: an unknown format, a missing package, or what `write_dsm` refuses.
    """
    if form not in EXPORT_FORMATS:
        raise InputError(f"--format: expected one of {', '.join(EXPORT_FORMATS)}, got {form!r}")
    # A missing package or a wrong number is said before the model is loaded.
    if form == "las":
        point_files.import_laspy()
    if form == "dsm":
        geotiff.import_rasterio()
    if form in ("las", "dsm"):
        geotiff.check_epsg(settings.geo.epsg)
    trained = load_trained(settings, workdir)
    folder = workdir / "export"
    if form == "ply":
        _export_surfels(trained, folder)
    elif form == "dsm":
        _export_dsm(trained, folder)
    else:
        _export_points(trained, folder, form)
