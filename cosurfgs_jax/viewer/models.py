"""The models of a run that the page can show: the newest one, and those of finished stages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cosurfgs_jax.collab.merged_model import load_merged
from cosurfgs_jax.collab.stages import STAGES, stages_of
from cosurfgs_jax.errors import required
from cosurfgs_jax.outputs.trained import load_trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import Workdir

NEWEST = "newest"


class Shown(NamedTuple):
    """A model that was loaded."""

    surfels: Surfels  # world frame
    stage: str
    steps: int  # of all stages up to it


class Models:
    """Loads the models of a run, and sees when there is a newer one."""

    def __init__(self, settings: Settings, workdir: Workdir):
        """
        Args:
            settings, workdir: see `load_trained`.
        Raises:
            InputError: see `load_trained`.
        """
        self._settings = settings
        self._workdir = workdir
        # Looked at before anything is loaded: what is saved meanwhile is newer than what is shown.
        steps = {spec.name: workdir.newest_step(spec.name) for spec in STAGES}
        trained = load_trained(settings, workdir)
        self.partitioned = trained.partitioned
        stage = self.stages()[-1]
        self.saved_at_first = (stage, steps[stage])
        surfels = jax.tree.map(jnp.asarray, trained.surfels)
        self._first: Shown | None = Shown(surfels, stage, trained.step)

    def stages(self) -> list[str]:
        """The stages of which something is saved, in order."""
        specs = stages_of(self._settings, self.partitioned.partition)
        return [spec.name for spec in specs if self._workdir.has_begun(spec.name)]

    def saved(self, choice: str) -> tuple[str, int | None]:
        """What `load` would read now: the stage, and the last of its steps that is saved.

        Args:
            choice: `NEWEST` or one of `stages`, which must not be empty.
        """
        stage = choice
        if choice == NEWEST:
            stage = self.stages()[-1]
        return stage, self._workdir.newest_step(stage)

    def load(self, choice: str) -> Shown:
        """A model; blocks that are not distilled yet are cropped to their cells.

        Args:
            choice: `NEWEST` or one of `stages`.
        Raises:
            InputError: a checkpoint is damaged, or was replaced while it was read.
        """
        stage, _ = self.saved(choice)
        surfels, steps = load_merged(self._settings, self._workdir, self.partitioned, stage)
        return Shown(jax.tree.map(jnp.asarray, surfels), stage, steps)

    def first(self) -> Shown:
        """The model that was there at the start; it is given once, and not kept."""
        shown = required(self._first, "the first model")
        self._first = None
        return shown
