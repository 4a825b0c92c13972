"""A trained model as the programs after training use it."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax.collab.merged_model import MergedModel, open_merged
from cosurfgs_jax.collab.stages import total_steps
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs.seen_surfels import Seen, seen_surfels
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.raster import Maps, RasterOptions, backend_of
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.kept_place import open_place
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, bound_views
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import Workdir

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A trained model and its dataset."""

    settings: Settings
    partitioned: PartitionedScene
    model: MergedModel
    workdir: Workdir

    @property
    def step(self) -> int:
        """Training steps of all stages."""
        return self.model.step

    @property
    def surfels(self) -> Surfels:
        """All of them in memory, read anew: NumPy arrays, world frame."""
        return self.model.whole()

    def parts(self, part: Part = WHOLE) -> Iterator[Surfels]:
        """The surfels of a part of the model, dataset frame, few at a time."""
        return map(self.partitioned.frame.surfels_to_dataset, self.model.chunks(part))

    def seen_by(self, chosen: np.ndarray) -> Seen:
        """The surfels that at least one of these views i64[n] may show, on the device."""
        near = RasterOptions.from_settings(self.settings.raster).near
        return seen_surfels(self.model, self.partitioned.views, chosen, near)

    def made_with(self, *groups: str) -> dict[str, Any]:
        """What shards of an output must have in common.

        Args:
            *groups: of settings that the output depends on, such as "surface".
        """
        made = {"model": self.model.identity, "config.raster.backend": self.settings.raster.backend}
        for group in groups:
            for name, value in dataclasses.asdict(getattr(self.settings, group)).items():
                made[f"config.{group}.{name}"] = value
        return made

    def render_fn(
        self, surfels: Surfels, maps: Maps = Maps.GEOMETRY
    ) -> Callable[[int], dict[str, np.ndarray]]:
        """View number -> maps in the dataset's frame (see `make_render_fn`).

        Args:
            surfels: `surfels`, or those of `seen_by` with the views that will be asked for.
            maps: see `make_render_fn`.
        """
        return make_render_fn(
            jax.tree.map(jnp.asarray, surfels),
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
    partitioned = open_place(settings, workdir, left_out=bound and bound.left_out, keeps=True)
    model = open_merged(settings, workdir, partitioned)
    total = total_steps(settings, partitioned.partition)
    if model.step < total:
        _log.info("the model is of step %d of %d: training is not finished", model.step, total)
    return Trained(settings, partitioned, model, workdir)
