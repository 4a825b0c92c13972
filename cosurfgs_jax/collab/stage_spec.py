"""What a stage is: the types of the table in `collab.stages`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from cosurfgs_jax.collab.exchange import Grouping
from cosurfgs_jax.collab.plans import Plans
from cosurfgs_jax.errors import required
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Run


class StageWork(NamedTuple):
    """What a stage starts from.

    | field         | content                                                                      |
    |---------------|------------------------------------------------------------------------------|
    | `run`         | of the run                                                                   |
    | `plans`       | its groupings; None where a block is trained by itself                       |
    | `name`        | of the stage                                                                 |
    | `num_steps`   | of the stage                                                                 |
    | `before`      | result of the stage before; None for the first, and where `saved` is not     |
    | `saved`       | state of an earlier call that was stopped or has finished; None at the start |
    | `checkpoints` | of the stage; None where it has none                                         |
    """

    run: Run
    plans: Plans | None
    name: str
    num_steps: int
    before: StageState | None
    saved: StageState | None
    checkpoints: Checkpoints | None

    @property
    def groupings(self) -> Plans:
        """`plans`, for a stage whose blocks exchange something."""
        return required(self.plans, "StageWork.plans")

    @property
    def models(self) -> StageState:
        """`before`, for a stage that starts from another one's models."""
        return required(self.before, "StageWork.before")

    @property
    def store(self) -> Checkpoints:
        """`checkpoints`, for a stage that has some."""
        return required(self.checkpoints, "StageWork.checkpoints")


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """A stage of the pipeline.

    | field             | content                                                                  |
    |-------------------|--------------------------------------------------------------------------|
    | `name`            | in metrics.json, in the curves and of the folder of checkpoints          |
    | `about`           | what it does, in a few words, for the log as it begins                   |
    | `run`             | takes the stage to its last step; raises `Stopped` with the state saved  |
    | `takes_part`      | (settings, partition) -> whether a run has the stage                     |
    | `num_steps`       | settings -> steps of the stage                                           |
    | `first_progress`  | settings -> where on the course of the learning rates it begins          |
    | `grouping`        | plans -> the blocks that are optimized as one model                      |
    | `is_merged`       | the result is cells of one model: cropped, and of one brightness         |
    | `is_of_blocks`    | blocks exchange nothing: each may be taken through it by itself          |
    | `has_checkpoints` | False: done again from the stage before until the stage after it is saved|
    """

    name: str
    about: str
    run: Callable[[StageWork], StageState]
    takes_part: Callable[[Settings, Partition], bool]
    num_steps: Callable[[Settings], int]
    grouping: Callable[[Plans], Grouping]
    is_merged: bool
    is_of_blocks: bool = False
    has_checkpoints: bool = True
    first_progress: Callable[[Settings], float] = lambda settings: 0.0
