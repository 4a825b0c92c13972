"""The mesh of a trained model, which is fused once."""

import hashlib
import logging
from pathlib import Path

import jax
import numpy as np

from cosurfgs_jax import files, report
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.surface import PHASES, Mesh, extract_mesh, read_mesh_ply
from cosurfgs_jax.training.run_log import Progress
from cosurfgs_jax.workdir import MESH

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
    choices = choices | {"model": _digest(trained)}
    files.write_json(workdir.mesh_choices, choices)
    return choices


def mesh_of(trained: Trained) -> Mesh:
    """The mesh of the workdir where it is of this model, else a new one, which stays there.

    Raises:
        InputError: see `surface.extract_mesh`.
    """
    workdir = trained.workdir
    is_current = False
    if workdir.mesh.exists() and workdir.mesh_choices.exists():
        choices = files.read_json_object(workdir.mesh_choices)
        is_current = choices.get("model") == _digest(trained)
    if is_current:
        _log.info("heights are those of %s", workdir.mesh)
    else:
        _log.info(
            "there is no mesh of this model yet; fusing it first, as config.geo.heights=surface "
            "needs"
        )
        with workdir.writing(MESH) as scratch:
            fuse(trained, scratch)
    return read_mesh_ply(workdir.mesh)
