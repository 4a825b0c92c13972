"""The first stage: every device trains its blocks on their own photographs."""

from cosurfgs_jax import pictures
from cosurfgs_jax.collab.stage_spec import StageWork
from cosurfgs_jax.training import block_renders, loop
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.trainer import Trainer


def train_blocks(work: StageWork) -> loop.StageState:
    """Trains all blocks from their SfM points, or goes on from what is saved."""
    run = work.run
    stage = work.saved
    if stage is None:
        stage = _start(run, work.name)
        _draw_test_views(run, stage)
    trainer = Trainer(
        run, Schedule.from_settings(run.settings, run.partitioned.dilation(run.settings))
    )
    return loop.run_stage(run, stage, work.num_steps, trainer.advance, work.store)


def _start(run: Run, name: str) -> loop.StageState:
    blocks = run.partitioned.blocks
    num_slots = loop.common_slots(blocks, [block.num_initial for block in blocks], run.settings)
    return loop.start_stage(
        run,
        name,
        lambda number: first_state(run.partitioned, blocks[number], run.settings, num_slots),
        num_slots,
    )


def _draw_test_views(run: Run, stage: loop.StageState) -> None:
    """Pictures of the test views as the SfM points alone show them, for the report."""
    partitioned = run.partitioned
    test_views = partitioned.scene.test_views
    numbers = {int(view): number for number, view in enumerate(test_views)}
    if not numbers:
        return
    for views in block_renders.views_in_step(partitioned, test_views):
        for block, color in block_renders.render_blocks(run, stage.states, views).items():
            height, width = partitioned.views.image_size(views[block])
            pictures.write_image(
                run.workdir.before / f"{numbers[views[block]]:05d}.png",
                pictures.to_uint8(color[:height, :width]),
            )
