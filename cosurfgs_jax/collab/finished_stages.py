"""What is left of finished stages: models without what only their own training needed."""

import logging
from collections.abc import Sequence

from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.distributed.layout import sharded
from cosurfgs_jax.training.checkpoint_files import keep_model_alone
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.state import BlockModel, begin_training

_log = logging.getLogger(__name__)


def keep_models_alone(run: Run, specs: Sequence[StageSpec]) -> None:
    """Deletes what the checkpoints of stages hold besides the models at their last steps, unless
    `train.keep_moments`; where jobs of their own have trained blocks, their copies of what the run
    has taken over. All processes call it.

    Args:
        run: of the run, or of a block by itself.
        specs: of stages that are finished, and that no stage begins with any more.
    """
    if processes.is_first() and not run.settings.train.keep_moments:
        for spec in specs:
            if spec.has_checkpoints:
                copies = [each.checkpoints(spec.name) for each in run.workdir.blocks().values()]
                keep_model_alone(
                    run.workdir.checkpoints(spec.name), spec.num_steps(run.settings), copies
                )
    processes.barrier("models-alone")


def trainable(run: Run, stage: StageState) -> StageState:
    """The stage as another one begins with it: where it has kept its models alone, with moments of
    zero, and a warning.

    Args:
        run: of the run.
        stage: at its last step.
    """
    if not any(isinstance(state, BlockModel) for state in stage.states):
        return stage
    _log.warning(
        "%s: the models of this finished stage are there, but not the moments of their optimiser: "
        "what begins with them has moments of zero, and ends in other bits "
        "(config.train.keep_moments keeps them)",
        stage.name,
    )
    max_views = run.partitioned.max_views
    kept = run.partitioned.kept(run.settings)
    begin = sharded(lambda model: begin_training(model, max_views, run.settings, kept), run.layout)
    return stage._replace(states=[begin(model) for model in stage.states])
