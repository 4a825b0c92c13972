"""Compression (LMC): PSNR and number of surfels against the prune ratio, with and without the camera switch.

python scripts/lmc_table.py --workdir=DIR [--ratios=0,0.2,0.35,0.5,0.65] [--recovery=STEPS] [--out=FILE.json]

DIR is the folder of a run of several blocks that has finished its device stage; it is read only. For every ratio the blocks are
pruned, cropped and put together, scored on the test views, trained to recover, and scored again.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from cosurfgs_jax import program, settings_file
from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.pipeline import RECOVERY_PROGRESS, make_plans
from cosurfgs_jax.collab.score import SeamMasks, score_cells
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.context import Context
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.layout import make_layout
from cosurfgs_jax.training.logging import Log
from cosurfgs_jax.training.place import open_place
from cosurfgs_jax.training.schedule import Schedule


def measure(context: Context, ratio: float, recovery: int, seams: SeamMasks, scratch: Path) -> dict:
    """One row: after pruning, and after recovery."""
    exchange = make_plans(context).whole_cloud
    with Checkpoints(loop.checkpoint_folder(context.workdir, "device")) as checkpoints:
        stage = loop.restore_stage(context, "device", checkpoints)
    result = compress.compress(context, stage, ratio)
    row = {"ratio": ratio, "camera_switch": context.settings.lmc.camera_switch, "kept": sum(result.num_after.values())}
    pruned = loop.Stage("lmc_device", result.rows, 0, 0, 0.0)
    context = context._replace(workdir=scratch, log=Log(scratch))

    def scores(name: str, rows: list) -> None:
        cells = compress.crop_rows(context, rows)
        row["merged"] = sum(int(state.alive.sum()) for state in context.layout.get_blocks(cells).values())
        row[name] = score_cells(context, cells, exchange, seams)._asdict()

    scores("pruned", pruned.rows)
    trainer = loop.Trainer(context, Schedule.without_growth(context.settings, recovery), RECOVERY_PROGRESS)
    with Checkpoints(scratch / "checkpoints") as checkpoints:
        scores("recovered", loop.run_stage(context, pruned, recovery, trainer.advance, checkpoints).rows)
    return row


def main() -> None:
    """Flags -> rows -> table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--ratios", default="0,0.2,0.35,0.5,0.65")
    parser.add_argument("--recovery", type=int, default=0, help="steps; 0 = those of the run's settings")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    program.start_devices(0)
    workdir = arguments.workdir.absolute()
    settings = settings_file.load(workdir / settings_file.NAME)
    recovery = arguments.recovery or round(settings.lmc.recovery * settings.train.steps)
    place = open_place(settings, workdir)
    seams, rows = SeamMasks(place, settings), []
    print("| ratio | camera switch | surfels kept | merged | PSNR pruned (fitted) | recovered (fitted) | at seams |")
    print("|---|---|---|---|---|---|---|")
    with ImageStore(place.scene, settings.data.host_memory_mb) as images, StopRequest() as stop:
        for is_on in (True, False):
            own = dataclasses.replace(settings, lmc=dataclasses.replace(settings.lmc, camera_switch=is_on))
            context = Context(own, workdir, place, make_layout(place.partition.edge_of_block), images, stop, None)
            for ratio in map(float, arguments.ratios.split(",")):
                with tempfile.TemporaryDirectory() as scratch:
                    row = measure(context, ratio, recovery, seams, Path(scratch))
                rows.append(row)
                before, after = row["pruned"], row["recovered"]
                print(f"| {ratio:.2f} | {'on' if is_on else 'off'} | {row['kept']:,d} | {row['merged']:,d} "
                      f"| {before['psnr']:.2f} ({before['psnr_fitted']:.2f}) | {after['psnr']:.2f} ({after['psnr_fitted']:.2f}) "
                      f"| {after['psnr_seam']:.2f} |", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
