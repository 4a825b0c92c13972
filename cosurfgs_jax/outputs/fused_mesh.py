"""The mesh of a trained model, which is fused once."""

import dataclasses
import hashlib
import logging
from pathlib import Path

import jax
import numpy as np

from cosurfgs_jax import files, report
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.open3d_library import import_open3d
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import SurfaceSettings
from cosurfgs_jax.surface import PHASES, Mesh, extract_mesh, read_mesh_ply
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.workdir import MESH

_FIELD = "distances to planes, confirmed by what shows them"  # a mesh of another is out of date
_WITHOUT_EFFECT = ("memory_mb",)  # on a mesh, of the settings
_log = logging.getLogger(__name__)


def _digest(trained: Trained) -> str:
    """The same text for the same surfels."""
    digest = hashlib.sha256()
    for field in jax.tree.leaves(trained.surfels):
        digest.update(np.ascontiguousarray(field).tobytes())
    return digest.hexdigest()[:32]


def fuse(trained: Trained, scratch: Path, form: str = "ply") -> dict:
    """Fuses the model's depth over all training views into the mesh of its workdir, whose lock of
    meshes (`Workdir.writing`) the caller holds.

    Args:
        trained: the model.
        scratch: folder for temporary files.
        form: see `surface.extract_mesh`.
    Returns:
        What was chosen, as in `Workdir.mesh_choices`.
    Raises:
        InputError: see `surface.extract_mesh`.
    """
    scene = trained.partitioned.scene
    workdir = trained.workdir
    num_views = len(scene.train_views)
    with Progress("mesh", len(PHASES) * num_views) as progress:

        def show(phase: str, done: int, total: int) -> None:
            if phase != "extract":  # is reported within "fuse"
                progress.update(num_views * PHASES.index(phase) + num_views * done // total)

        choices = extract_mesh(
            trained.render_fn(),
            scene,
            scene.train_views,
            trained.settings.surface,
            workdir.mesh,
            form=form,
            scratch_dir=scratch,
            progress=show,
        )
    report.drop_error_files(workdir)
    workdir.merge_metrics(geometry=None)  # it was another mesh's
    geo = trained.settings.geo
    # The mesh itself is in the dataset's frame.
    place = {"offset": geo.offset_xyz(), "epsg": geo.epsg}
    choices = choices | {"field": _FIELD, "model": _digest(trained), "map": place}
    files.write_json(workdir.mesh_choices, choices)
    return choices


def mesh_of(trained: Trained, what: str, otherwise: str = "") -> Mesh:
    """The mesh of the workdir where it is of this model and as the settings want it, else a new
    one, which stays there.

    Args:
        trained: the model.
        what: is made of it, for messages: "heights".
        otherwise: what to do without open3d, for the message.
    Raises:
        InputError: see `surface.extract_mesh`.
    """
    workdir = trained.workdir
    choices = {}
    why_not = "there is no mesh yet"
    if workdir.mesh.exists():
        if workdir.mesh_choices.exists():
            choices = files.read_json_object(workdir.mesh_choices)
        why_not = _why_not(trained, choices)
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
            fuse(trained, scratch)
    else:
        _log.info("%s: of %s", what, workdir.mesh)
        if choices.get("target_triangles"):
            _log.warning(
                "%s was reduced to %s triangles, and so are the %s; run extract_mesh with "
                "--config.surface.target_triangles=0 for all of them",
                workdir.mesh,
                choices["target_triangles"],
                what,
            )
    return read_mesh_ply(workdir.mesh)


def _check_open3d(otherwise: str) -> None:
    try:
        import_open3d()
    except InputError as error:
        raise InputError(f"{error}{otherwise}") from error


def _why_not(trained: Trained, choices: dict) -> str:
    """Why a mesh is not what is wanted; "" where it is. What nobody has set may be as it was when
    the mesh was extracted.

    Args:
        trained: the model, with the settings.
        choices: content of `Workdir.mesh_choices`.
    """
    if choices.get("model") != _digest(trained):
        return f"{trained.workdir.mesh} is not of this model"
    if choices.get("field") != _FIELD:
        return f"{trained.workdir.mesh} was fused by an earlier version"
    wanted = dataclasses.asdict(trained.settings.surface)
    usual = dataclasses.asdict(SurfaceSettings())
    for name, value in wanted.items():
        if value not in (usual[name], choices.get(name)) and name not in _WITHOUT_EFFECT:
            return f"{trained.workdir.mesh} was made with another config.surface.{name}"
    return ""
