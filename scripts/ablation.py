"""Centralised training against blocks that are cropped and merged, compressed (LMC), distilled
(MAS), and both, on one scene.

python scripts/ablation.py --data=DATASET --workdir=DIR [--only=crop_merge,mas] [--config.NAME=VALUE
...]

Runs configs/ablation/*.py, each in a folder of its own below DIR; stages that two of them share are
trained once. Interrupted, the same command goes on. Writes DIR/ablation.json and DIR/ablation.md:
PSNR on test views, the same along the walls between cells (on the same pixels for all), surfels,
memory, time, bytes sent a step; where the true surface is known, F1 of the mesh."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import settings_file
from cosurfgs_jax.collab.merged_model import load_merged
from cosurfgs_jax.collab.stage_scores import NUM_SUMS, SeamMasks, score_view, scores_from_sums
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.raster import Maps, RasterOptions
from cosurfgs_jax.surface import read_mesh_ply
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
# Name, title, and whose stages it begins with.
VARIANTS = (
    ("centralised", "centralised, one block", None),
    ("crop_merge", "4 blocks, cropped and merged", None),
    ("lmc", "+ LMC", "crop_merge"),
    ("mas", "+ MAS", "crop_merge"),
    ("full", "+ LMC + MAS", "lmc"),
    ("centralised_equal", "centralised, as many surfels as + LMC + MAS", None),
)
SHARED_STAGES = ("device", "lmc_device")


def share_stages(source: Path, target: Path) -> None:
    """Copies finished stages from one run to another that begins with the same ones."""
    old = Workdir(source)
    new = Workdir(target)
    if new.config.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    rows = json.loads(old.metrics.read_text())
    for name in SHARED_STAGES:
        if old.checkpoints(name).is_dir():
            shutil.copytree(old.checkpoints(name), new.checkpoints(name), dirs_exist_ok=True)
    rows |= {
        "stages": [row for row in rows["stages"] if row["name"] in SHARED_STAGES],
        "final": None,
        "geometry": None,
    }
    new.metrics.write_text(json.dumps(rows))
    if old.data.is_dir():  # a generated scene
        shutil.copytree(old.data, new.data, dirs_exist_ok=True)


def run(name: str, workdir: Path, data: str, overrides: list[str]) -> None:
    """Trains one variant, or lets it go on."""
    config = "centralised" if name.startswith("centralised") else name
    command = [
        sys.executable,
        "-m",
        "cosurfgs_jax.train",
        f"--config={ROOT / 'configs' / 'ablation' / config}.py",
        f"--config.data.path={data}",
        f"--workdir={workdir / name}",
        *overrides,
    ]
    if config == "centralised":
        command = [part for part in command if not part.startswith("--config.partition.")]
    if name == "centralised_equal":
        stages = Workdir(workdir / "full").read_metrics()["stages"]
        command.append(f"--config.surfels.capacity={stages[-1]['num_surfels_merged']}")
    subprocess.run(command, check=True)


def score(workdir: Workdir, seams: SeamMasks) -> dict:
    """Scores of the merged model, drawn as a whole."""
    settings = settings_file.load(workdir.config)
    partitioned = open_partitioned_scene(settings, workdir)
    surfels, step = load_merged(settings, workdir, partitioned)
    render = make_render_fn(
        jax.tree.map(jnp.asarray, surfels),
        partitioned.views,
        partitioned.frame,
        RasterOptions.from_settings(settings.raster),
        Maps.COLOR,
    )
    sums = np.zeros(NUM_SUMS)
    with ImageStore(partitioned.scene, 1024) as images:
        for view in partitioned.scene.test_views:
            sums += score_view(render(int(view))["color"], images.load(view), seams.mask(int(view)))
    scores = scores_from_sums(sums)
    stages = workdir.read_metrics()["stages"]
    surface = None
    if partitioned.scene.ground_truth is not None:
        if not workdir.mesh.exists():
            subprocess.run(
                [sys.executable, "-m", "cosurfgs_jax.extract_mesh", f"--workdir={workdir}"],
                check=True,
            )
        mesh = read_mesh_ply(workdir.mesh)
        surface = evaluation.compare_to_truth(
            (mesh.vertices, mesh.triangles), partitioned.scene
        ).scores
    return {
        "surface": surface,
        **scores._asdict(),
        "surfels": len(surfels.alive),
        "steps": step,
        "peak_bytes": max(row["peak_bytes_per_device"] for row in stages),
        "stages": stages,
        "bytes_sent_per_step": max(row.get("bytes_sent_per_step", 0) for row in stages),
    }


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    titles = [
        "variant",
        "PSNR (fitted)",
        "at seams (fitted)",
        "SSIM",
        "surfels",
        "process memory",
        "time by stage",
        "sent a step and device",
    ]
    has_truth = any(row["surface"] for row in results.values())
    if has_truth:
        titles.append("F1 at 0.1 / 0.25 / 0.5 % of the width")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, title, _ in VARIANTS:
        if name in results:
            row = results[name]
            times = ", ".join(
                f"{stage['name']} {stage['seconds']:.0f} s"
                for stage in row["stages"]
                if stage["seconds"]
            )
            cells = [
                title,
                f"{row['psnr']:.2f} ({row['psnr_fitted']:.2f}) dB",
                f"{row['psnr_seam']:.2f} ({row['psnr_seam_fitted']:.2f}) dB",
                f"{row['ssim']:.4f}",
                f"{row['surfels']:,d}",
                f"{row['peak_bytes'] / 2**30:.2f} GiB",
                times,
                f"{row['bytes_sent_per_step'] / 2**20:.1f} MiB",
            ]
            if has_truth:
                cells.append(
                    " / ".join(
                        f"{at['f1']:.3f}"
                        for at in row["surface"]["thresholds"]
                        if "of the width" in at["kind"]
                    )
                )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Flags -> runs -> table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="generated", help='dataset folder, or "generated"')
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument(
        "--only", default="", help="names of variants, with commas between; empty = all"
    )
    arguments, overrides = parser.parse_known_args()
    if unknown := set(filter(None, arguments.only.split(","))) - {name for name, *_ in VARIANTS}:
        parser.error(
            f"--only: expected some of {', '.join(name for name, *_ in VARIANTS)}, got "
            f"{', '.join(sorted(unknown))}"
        )
    chosen = [
        name for name, *_ in VARIANTS if not arguments.only or name in arguments.only.split(",")
    ]
    for name, _, source in VARIANTS:
        if name in chosen:
            if source:
                share_stages(arguments.workdir / source, arguments.workdir / name)
            run(name, arguments.workdir, arguments.data, overrides)
    divided = next(
        (
            name
            for name in ("crop_merge", "lmc", "mas", "full")
            if (arguments.workdir / name).is_dir()
        ),
        None,
    )
    if divided is None:
        sys.exit(
            "a table needs one variant of several blocks, for where the seams are; add crop_merge "
            "to --only"
        )
    source = Workdir(arguments.workdir / divided)
    settings = settings_file.load(source.config)
    seams = SeamMasks(open_partitioned_scene(settings, source), settings)
    results = {
        name: score(Workdir(arguments.workdir / name), seams)
        for name, *_ in VARIANTS
        if Workdir(arguments.workdir / name).metrics.exists()
    }
    (arguments.workdir / "ablation.json").write_text(json.dumps(results, indent=2))
    (arguments.workdir / "ablation.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
