"""The mesh of a trained model, which is fused once."""

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files, report
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.place_json import Place, placing
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.outputs.map_frame import place_of
from cosurfgs_jax.outputs.shards import Shards
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.settings import GeoSettings
from cosurfgs_jax.settings_file import first_change
from cosurfgs_jax.surface import (
    PHASES,
    Fused,
    Mesh,
    MeshPlan,
    fuse_part,
    plan_mesh,
    read_mesh_ply,
    whole_mesh_bytes,
    write_parts,
)
from cosurfgs_jax.surface.mesh_files import upright
from cosurfgs_jax.surface.mesh_plan import MESH_ARRAYS, arrays_of, plan_from
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.workdir import MESH, Workdir

# A mesh of another is out of date.
_FIELD = "distances to planes, confirmed by what shows them, with the number of views"
_WITHOUT_EFFECT = ("memory_mb",)  # on a mesh, of the settings
# Not of its parts.
_OF_THE_WHOLE = (*_WITHOUT_EFFECT, "min_cluster_share", "smoothing_passes", "target_triangles")
_log = logging.getLogger(__name__)


def plan_of(trained: Trained) -> MeshPlan:
    """What the mesh of a model is made of: the depth of all training views.

    Raises:
        InputError: see `surface.plan_mesh`.
    """
    scene = trained.partitioned.scene
    settings = trained.settings.surface
    folder = trained.partitioned.kept_in
    if folder is None:
        return plan_mesh(scene, scene.train_views, settings)
    lengths = [settings.voxel_size, settings.truncation_voxels, settings.min_neighbor_views]
    path = folder / f"mesh-{'-'.join(map(repr, lengths))}.npz"
    if path.exists():  # of another shard: nothing of it depends on the model
        try:
            with files.reading(path, "the plan of a mesh", "delete it"):
                arrays = files.read_arrays(path, MESH_ARRAYS)
                return plan_from(arrays, scene, scene.train_views, settings)
        except InputError as error:
            _log.warning("%s; it is made again", error)
    plan = plan_mesh(scene, scene.train_views, settings)
    found: dict[str, Any] = arrays_of(plan)
    try:
        with files.atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **found)
    except InputError as error:
        _log.warning("%s; every shard makes the plan of the mesh", error)
    return plan


def make_part(
    trained: Trained, plan: MeshPlan, part: Part, folder: Path, form: str = "ply"
) -> Fused:
    """Fuses a part of a model's mesh into a folder, from the surfels that its views may show.

    Args:
        trained, plan: the model, and `plan_of` it.
        part: of the mesh.
        folder: an empty one.
        form: of the whole mesh, see `surface.extract_mesh`.
    Raises:
        InputError: see `surface.fuse_part`.
    """
    drawn = plan.numbers[plan.drawn_by(part)]
    num_views = max(1, len(drawn))
    with Progress("mesh", len(PHASES) * num_views) as progress:

        def show(phase: str, done: int, total: int) -> None:
            if phase != "extract":  # is reported within "fuse"
                progress.update(num_views * PHASES.index(phase) + num_views * done // total)

        return fuse_part(
            plan,
            part,
            trained.render_fn(trained.seen_by(drawn).surfels),
            folder=folder,
            whole_mesh_bytes=whole_mesh_bytes(plan.settings, form) * (part == WHOLE),
            progress=show,
        )


def shards_of(trained: Trained) -> Shards:
    """The shards of a model's mesh."""
    made_with = trained.made_with("surface")
    for name in _OF_THE_WHOLE:
        made_with.pop(f"config.surface.{name}")
    return Shards(trained.workdir, MESH, "extract_mesh", made_with)


def make_shard(trained: Trained, part: Part) -> None:
    """Fuses a part of a model's mesh, and leaves it as a shard of the workdir.

    Raises:
        InputError: see `plan_of`, `make_part` and `Shards.making`.
    """
    started = time.monotonic()
    plan = plan_of(trained)
    with shards_of(trained).making(part) as shard:
        if shard is not None:
            folder, note = shard
            note["fused"] = make_part(trained, plan, part, folder)._asdict()
            note["seconds"] = time.monotonic() - started


def fuse(
    trained: Trained,
    scratch: Path,
    form: str = "ply",
    parts: Sequence[tuple[Path, Fused]] = (),
) -> dict:
    """Fuses the model's depth over all training views into the mesh of its workdir, whose lock of
    meshes (`Workdir.writing`) the caller holds.

    Args:
        trained: the model.
        scratch: folder for temporary files.
        form: see `surface.extract_mesh`.
        parts: folder and findings of each part that `make_part` has made; none = all is made here.
    Returns:
        What was chosen, as in `Workdir.mesh_choices`.
    Raises:
        InputError: see `surface.extract_mesh`.
    """
    workdir = trained.workdir
    plan = plan_of(trained)
    up = trained.partitioned.scene.up
    made = list(parts) or [(scratch, make_part(trained, plan, WHOLE, scratch, form=form))]
    forms = tuple({"ply", form})
    places = mesh_places(trained.settings.geo, up, workdir.mesh.stem, forms)
    with placing(workdir.mesh.parent, places):
        choices = write_parts(plan, made, path=workdir.mesh, form=form, up=up)
    report.drop_error_files(workdir)
    workdir.merge_metrics(geometry=None)  # it was another mesh's
    choices = choices | {"field": _FIELD, "model": trained.model.identity}
    files.write_json(workdir.mesh_choices, choices)
    return choices


def mesh_places(
    geo: GeoSettings, up: np.ndarray, stem: str, forms: Iterable[str]
) -> dict[str, Place]:
    """The places on the map of files of a mesh, by their names: GLB is y up, the others are in the
    dataset's frame.

    Args:
        geo: with the offset of the dataset, of `with_map_frame`.
        up: f64[3], dataset.
        stem: of the names.
        forms: "ply", "obj", "glb".
    """
    axes = {form: None for form in forms}
    if "glb" in axes:
        axes["glb"] = upright(up).T
    return {f"{stem}.{form}": place_of(geo, rotation) for form, rotation in axes.items()}


def find_mesh(trained: Trained, what: str, otherwise: str = "") -> dict[str, Any]:
    """Makes the mesh of the workdir, where it is not of this model and as the settings want it.

    Args:
        trained: the model.
        what: is made of it, for messages: "heights".
        otherwise: what to do without open3d, for the message.
    Returns:
        What was chosen, as in `Workdir.mesh_choices`.
    Raises:
        InputError: see `surface.extract_mesh`.
    """
    workdir = trained.workdir
    why_not = why_fuse(trained)
    if why_not:
        _check_open3d(otherwise)
        _log.info("%s; fusing one first, for the %s", why_not, what)
        if workdir.mesh.exists():
            _log.warning(
                "%s is replaced, and its scores are deleted; the report, and meshes of other "
                "formats, are those of the old one until you run extract_mesh or evaluate",
                workdir.mesh,
            )
        with workdir.writing(MESH) as scratch:
            return fuse(trained, scratch)
    _log.info("%s: of %s", what, workdir.mesh)
    choices = _choices(workdir)
    if choices.get("target_triangles"):
        _log.warning(
            "%s was reduced to %s triangles, and so are the %s; run extract_mesh with "
            "--config.surface.target_triangles=0 for all of them",
            workdir.mesh,
            choices["target_triangles"],
            what,
        )
    return choices


def mesh_of(trained: Trained, what: str, otherwise: str = "") -> Mesh:
    """The mesh of the workdir where it is of this model and as the settings want it, else a new
    one, which stays there. Arguments and errors are those of `find_mesh`.
    """
    find_mesh(trained, what, otherwise)
    return read_mesh_ply(trained.workdir.mesh)


def _check_open3d(otherwise: str) -> None:
    try:
        import_open3d()
    except InputError as error:
        raise InputError(f"{error}{otherwise}") from error


def _choices(workdir: Workdir) -> dict[str, Any]:
    """What the mesh was made with; empty where nothing says so."""
    if not workdir.mesh_choices.exists():
        return {}
    return files.read_json_object(workdir.mesh_choices)


def why_fuse(trained: Trained) -> str:
    """Why the mesh of the workdir is not what is wanted; "" where it is. What nobody has set may be
    as it was when the mesh was extracted.
    """
    path = trained.workdir.mesh
    if not path.exists():
        return "there is no mesh yet"
    choices = _choices(trained.workdir)
    if choices.get("model") != trained.model.identity:
        return f"{path} is not of this model"
    if choices.get("field") != _FIELD:
        return f"{path} was fused by an earlier version"
    changed = first_change(trained.settings.surface, choices, _WITHOUT_EFFECT)
    if changed:
        return f"{path} was made with another config.surface.{changed}"
    return ""
