"""The mesh of a trained model, which is fused once."""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
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
    mesh_files,
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
_ABOUT = (
    "draws the depth of the training views, keeps what other views confirm, fuses it into a signed "
    "distance field (TSDF) and takes the surface out of that"
)
_SAID = {"num_triangles", "voxel_size", "confidence"}  # of a mesh, in the log
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
    with Progress("mesh", len(PHASES) * num_views, about=_ABOUT) as progress:

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
    return Shards(trained.workdir, MESH, "extract_mesh", _made_with(trained, _OF_THE_WHOLE))


def _made_with(trained: Trained, but: tuple[str, ...]) -> dict[str, Any]:
    """What a mesh follows from, but for some settings of `surface`."""
    made_with = trained.made_with("surface")
    for name in but:
        made_with.pop(f"config.surface.{name}")
    return made_with


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
    places = mesh_places(trained.settings.geo, up, workdir.mesh.stem, {"ply", form})
    with placing(workdir.mesh.parent, places), _replacing(workdir, form):
        choices = write_parts(plan, made, path=workdir.mesh, form=form, up=up)
    report.drop_error_files(workdir)
    workdir.merge_metrics(geometry=None)  # it was another mesh's
    choices = choices | {
        "field": _FIELD,
        "model": trained.model.identity,
        "made_with": _made_with(trained, _WITHOUT_EFFECT),
        "checksum": files.checksum(workdir.mesh),
    }
    files.write_json(workdir.mesh_choices, choices)
    return choices


@contextlib.contextmanager
def _replacing(workdir: Workdir, form: str) -> Iterator[None]:
    """While the mesh is written there is no note of it: that of the mesh before would be taken for
    its own, were this broken off. Where that mesh stays its note comes back; where it is replaced
    its other formats go.
    """
    note = workdir.mesh_choices
    content = note.read_bytes() if note.exists() else None
    before = files.state_of(workdir.mesh) if workdir.mesh.exists() else ""
    note.unlink(missing_ok=True)
    try:
        yield
    except InputError:
        if content is not None and before and files.state_of(workdir.mesh) == before:
            with files.atomic_path(note) as partial:
                partial.write_bytes(content)
        raise
    for other in sorted({"obj", "glb"} - {form}):
        path = workdir.mesh.with_suffix(f".{other}")
        if path.exists():
            path.unlink()
            _log.info("%s was of the mesh before and is deleted", path)


def reuse(trained: Trained, form: str) -> dict | None:
    """The mesh of the workdir where `fuse` would make the same file again; for who holds the lock
    of meshes.

    Args:
        trained: the model, with the settings.
        form: see `surface.extract_mesh`; another format than PLY is written from the mesh.
    Returns:
        What `fuse` returned for it; None where there is no mesh, or it is of another model or other
        settings, or was changed: the log says which.
    """
    workdir = trained.workdir
    if not workdir.mesh.exists():
        return None
    choices = {}
    with contextlib.suppress(InputError):  # missing or damaged: nothing is known of the mesh
        choices = _choices(workdir)
    why_not = _why_another(trained, choices, form)
    if why_not:
        _log.info("%s; it is fused anew", why_not)
        return None
    _log.info(
        "mesh: %s is of this model and these settings already; --force fuses it anew", workdir.mesh
    )
    up = trained.partitioned.scene.up
    places = mesh_places(trained.settings.geo, up, workdir.mesh.stem, {"ply", form})
    with placing(workdir.mesh.parent, places):
        if form != "ply":
            mesh = read_mesh_ply(workdir.mesh)
            mesh_files.write_mesh(workdir.mesh.with_suffix(f".{form}"), mesh, form, up)
    return choices


def _why_another(trained: Trained, choices: dict, form: str) -> str:
    """Why `fuse` would make another file than the mesh that is there; "" where it would not."""
    mesh = trained.workdir.mesh
    why_not = _why_not(trained, choices)
    if why_not:
        return why_not
    before = choices.get("made_with")
    if not (isinstance(before, dict) and choices.keys() >= _SAID):
        return f"{mesh} was fused by an earlier version"
    for name, value in _made_with(trained, _WITHOUT_EFFECT).items():
        if before.get(name) != value:
            return f"{mesh} was made with another {name}"
    if choices.get("checksum") != files.checksum(mesh):
        return f"{mesh} was changed after it was fused"
    needed = mesh_files.BYTES_PER_TRIANGLE[form] * choices["num_triangles"]
    if needed > trained.settings.surface.memory_mb * 2**20:
        return f"as {form}, {mesh} takes more memory than config.surface.memory_mb"
    return ""


def log_mesh(choices: dict, path: Path) -> None:
    """Says what a mesh is.

    Args:
        choices: what `fuse` returned.
        path: of the file.
    """
    _log.info(
        "mesh: %d triangles, voxel size %.4g, in %s",
        choices["num_triangles"],
        choices["voxel_size"],
        path,
    )
    _log.info(
        "mesh: fused from fewer than 3 photographs: %.1f %% of the vertices, fewer than 6: %.1f %%",
        100 * choices["confidence"]["below_3"],
        100 * choices["confidence"]["below_6"],
    )


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
                "%s is replaced, and its scores and other formats are deleted; the report is that "
                "of the old one until you run extract_mesh or evaluate",
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


def say_of_another(trained: Trained) -> None:
    """Warns where the mesh that is scored is not what `fuse` would make now."""
    try:
        why_not = why_fuse(trained)
    except InputError as error:  # of its note alone
        why_not = str(error)
    if why_not:
        _log.warning("%s; its scores are those of the mesh that is there", why_not)


def why_fuse(trained: Trained) -> str:
    """Why the mesh of the workdir is not what is wanted; "" where it is. What nobody has set may be
    as it was when the mesh was extracted.
    """
    if not trained.workdir.mesh.exists():
        return "there is no mesh yet"
    return _why_not(trained, _choices(trained.workdir))


def _why_not(trained: Trained, choices: dict) -> str:
    """`why_fuse` of a mesh that is there, with the content of `Workdir.mesh_choices`."""
    path = trained.workdir.mesh
    if choices.get("model") != trained.model.identity:
        return f"{path} is not of this model"
    if choices.get("field") != _FIELD:
        return f"{path} was fused by an earlier version"
    changed = first_change(trained.settings.surface, choices, _WITHOUT_EFFECT)
    if changed:
        return f"{path} was made with another config.surface.{changed}"
    return ""
