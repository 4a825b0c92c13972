"""A trained model as the programs after training use it."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.collab.merged_model import load_merged
from cosurfgs_jax.collab.stages import total_steps
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import Maps, RasterOptions, backend_of
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import (
    PartitionedScene,
    bound_views,
    open_partitioned_scene,
)
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import Workdir

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A trained model and its dataset."""

    settings: Settings
    partitioned: PartitionedScene
    surfels: Surfels  # world frame
    step: int
    workdir: Workdir

    def render_fn(self, maps: Maps = Maps.GEOMETRY) -> Callable[[int], dict[str, np.ndarray]]:
        """View number -> maps in the dataset's frame (see `make_render_fn`)."""
        return make_render_fn(
            self.surfels,
            self.partitioned.views,
            self.partitioned.frame,
            RasterOptions.from_settings(self.settings.raster),
            maps,
        )


def load_trained(settings: Settings, workdir: Workdir) -> Trained:
    """The newest saved model of a workdir.

    Args:
        settings: those of the run, but for what may change after training
            (`settings_file.FREE_AFTER_TRAINING`).
        workdir: of the run.
    Raises:
        InputError: nothing is saved yet, the dataset has changed, or the backend of the settings
            cannot be used here.
    """
    backend_of(settings.raster)
    if not workdir.has_begun():
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )
    bound = None
    if workdir.blocks():  # jobs of their own had to agree on it
        bound = bound_views(workdir)
    partitioned = open_partitioned_scene(settings, workdir, left_out=bound and bound.left_out)
    surfels, step = load_merged(settings, workdir, partitioned)
    total = total_steps(settings, partitioned.partition)
    if step < total:
        _log.info("the model is of step %d of %d: training is not finished", step, total)
    return Trained(
        settings=settings,
        partitioned=partitioned,
        surfels=jax.tree.map(jnp.asarray, surfels),
        step=step,
        workdir=workdir,
    )
