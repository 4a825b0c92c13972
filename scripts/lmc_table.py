"""Compression (LMC): scores of the merged model against the fraction that is pruned, for each
importance score and number of rounds.

python scripts/lmc_table.py --workdir=DIR [--ratios=0,0.2,0.4,0.6,0.8] [--scores=removal,weight]
[--rounds=1,4]
    [--recovery=STEPS] [--camera_switch=on,off] [--mesh] [--out=FILE.json]

DIR is the folder of a run of several blocks that has finished its device stage with
--config.train.keep_moments; it is read only.
For every row the blocks are pruned and trained to recover, in rounds, then cropped, put together
and scored on the test views. With one round the pruned model is scored before its recovery, too. A
ratio of 0 is the same training without pruning: what the others are compared with. --mesh extracts
the mesh, too, where the true surface is known: F1 at three fractions of the width."""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ablation import f1_of

from cosurfgs_jax import host_memory, program, settings_file
from cosurfgs_jax.collab import compress
from cosurfgs_jax.collab.finished_stages import trainable
from cosurfgs_jax.collab.importance_scores import SCORES
from cosurfgs_jax.collab.lmc_stages import compress_in_rounds
from cosurfgs_jax.collab.plans import make_plans
from cosurfgs_jax.collab.stage_scores import SeamMasks, score_cells
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.raster import RasterOptions
from cosurfgs_jax.surface import extract_mesh
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.checkpoints import Checkpoints, Parts
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.types import Surfels
from cosurfgs_jax.workdir import Workdir


def score_mesh(run: Run, states: list) -> list[float]:
    """F1 of the mesh of blocks cropped to their cells, at fractions of the scene's width."""
    cells = [
        jax.tree.map(
            lambda leaf, alive=state.alive: jnp.asarray(leaf)[np.asarray(alive)], state.params
        )
        for state in states
    ]
    merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *cells)
    surfels = Surfels.of(merged, jnp.ones(len(merged.means), bool))
    partitioned = run.partitioned
    options = RasterOptions.from_settings(run.settings.raster)
    render = make_render_fn(surfels, partitioned.views, partitioned.frame, options)
    scene = partitioned.scene
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "mesh.ply"
        extract_mesh(render, scene, scene.train_views, run.settings.surface, path)
        return f1_of(path, scene)


def measure(run: Run, recovery: int, seams: SeamMasks, has_mesh: bool) -> dict:
    """One row: the blocks pruned as the settings say, before and after recovery."""
    exchange = make_plans(run).whole_cloud.exchange
    lmc = run.settings.lmc
    row = {
        "ratio": lmc.prune_ratio,
        "score": lmc.score,
        "rounds": lmc.rounds,
        "camera_switch": lmc.camera_switch,
    }

    def compressed(num_steps: int) -> dict:
        with Checkpoints(run.workdir.checkpoints("device"), is_read_only=True) as checkpoints:
            finished = Parts(last_step=run.settings.train.steps)
            saved = loop.restore_stage(run, "device", checkpoints, finished)
        stage = trainable(run, saved)
        with (
            tempfile.TemporaryDirectory() as scratch,
            Checkpoints(Path(scratch) / "checkpoints") as checkpoints,
        ):
            own = run._replace(workdir=Workdir(Path(scratch)), log=Log(Workdir(Path(scratch))))
            begun = loop.StageState("lmc_device", stage.states, 0, 0, 0.0)
            rows = compress.crop_to_cells(
                run.partitioned.partition,
                run.layout,
                compress_in_rounds(own, begun, num_steps, checkpoints).states,
            )
        blocks = list(run.layout.get_blocks(rows).values())
        row = {"merged": sum(int(state.alive.sum()) for state in blocks)}
        row |= score_cells(run, rows, exchange, seams)._asdict()
        if has_mesh and run.partitioned.scene.ground_truth is not None:
            row["f1"] = score_mesh(run, blocks)
        return row

    if lmc.rounds == 1:
        row["pruned"] = compressed(0)
    row["recovered"] = compressed(recovery)
    return row


def cell(scores: dict | None) -> str:
    """PSNR and the same with colours fitted."""
    return "" if scores is None else f"{scores['psnr']:.2f} ({scores['psnr_fitted']:.2f})"


def parse_arguments() -> argparse.Namespace:
    """Flags, with comma-separated lists split."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--ratios", default="0,0.2,0.4,0.6,0.8")
    parser.add_argument("--scores", default=",".join(SCORES))
    parser.add_argument("--rounds", default="1,4")
    parser.add_argument("--camera_switch", default="on")
    parser.add_argument(
        "--recovery", type=int, default=0, help="steps; 0 = those of the run's settings"
    )
    parser.add_argument(
        "--seed", type=int, help="of photographs and random signs from here on; default: the run's"
    )
    parser.add_argument("--mesh", action="store_true")
    parser.add_argument("--out", default="")
    return parser.parse_args()


def main() -> None:
    """Flags -> rows -> table."""
    arguments = parse_arguments()
    program.start_devices(0)
    host_memory.keep_freed()
    workdir = Workdir(arguments.workdir.absolute())
    settings = settings_file.load(workdir.config)
    settings = dataclasses.replace(
        settings, seed=settings.seed if arguments.seed is None else arguments.seed
    )
    recovery = arguments.recovery or round(settings.lmc.recovery * settings.train.steps)
    partitioned = open_partitioned_scene(settings, workdir)
    seams = SeamMasks(partitioned, settings)
    layout = make_layout(partitioned.partition.edge_of_block)
    rows = []
    print(
        "| pruned | score | rounds | switch | merged | PSNR before recovery (fitted) | after "
        "(fitted) | SSIM "
        "| at seams (fitted) | F1 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    flags = ("camera_switch", "ratios", "scores", "rounds")
    choices = itertools.product(*(getattr(arguments, name).split(",") for name in flags))
    with (
        ImageStore(partitioned.scene, settings.data.host_memory_mb) as images,
        StopRequest() as stop,
    ):
        for switch, ratio, score, rounds in choices:
            if float(ratio) == 0 and (score, rounds) != (
                arguments.scores.split(",")[0],
                arguments.rounds.split(",")[0],
            ):
                continue  # nothing is pruned: one row says it all
            lmc = dataclasses.replace(
                settings.lmc,
                prune_ratio=float(ratio),
                score=score,
                rounds=int(rounds),
                camera_switch=switch == "on",
            )
            run = Run(
                dataclasses.replace(settings, lmc=lmc),
                workdir,
                partitioned,
                layout,
                images,
                stop,
                None,
            )
            row = measure(run, recovery, seams, arguments.mesh)
            rows.append(row)
            after = row["recovered"]
            print(
                f"| {float(ratio):.2f} | {score} | {rounds} | {switch} | {after['merged']:,d} "
                f"| {cell(row.get('pruned'))} | {cell(after)} | {after['ssim']:.4f} "
                f"| {after['psnr_seam']:.2f} ({after['psnr_seam_fitted']:.2f}) "
                f"| {', '.join(format(value, '.3f') for value in after.get('f1', []))} |",
                flush=True,
            )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
