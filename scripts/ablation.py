"""What compression (LMC) and distillation (MAS) do to a scene in four blocks, beside the same
number of steps without them: scores, surfels, processor time, memory, bytes.

python scripts/ablation.py --workdir=DIR [--seeds=0,1,2] [--only=crop_merge,mas] [--mesh]
    [--config=FILE] [--config.NAME=VALUE ...]

Trains each variant of VARIANTS in a folder of its own, DIR/SEED/NAME; stages that two of them
share are trained once. Settings are those of --config (configs/default.py) with 3000 steps and four
blocks in two edges, then those given, then the variant's. Interrupted, the same command goes on.
Writes DIR/ablation.json and DIR/ablation.md: on the test views PSNR, the same with colours fitted,
SSIM, and PSNR along the walls between cells (on the same pixels for all); with --mesh, where the
true surface is known, F1 of the mesh. With several seeds the mean and, after +-, half of the range.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import files, settings_file
from cosurfgs_jax.collab.merged_model import load_merged
from cosurfgs_jax.collab.stage_scores import NUM_SUMS, SeamMasks, score_view, scores_from_sums
from cosurfgs_jax.collab.stages import total_steps
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.program.options import declare_flags, parse_options
from cosurfgs_jax.raster import Maps, RasterOptions
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.surface import read_mesh_ply
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.training.world_cameras import make_render_fn
from cosurfgs_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
BASE = {
    "config": str(ROOT / "configs" / "default.py"),
    "config.train.steps": "3000",
    "config.partition.num_blocks": "4",
    "config.partition.num_edges": "2",
    "config.train.keep_moments": "true",  # others begin with the first stages
}
SHARED_STAGES = ("device", "lmc_device")
MIB = 2**20

NO_LMC = {"lmc.enabled": "false"}
NO_MAS = {"mas.enabled": "false"}
ALONE = {**NO_LMC, **NO_MAS}
ONE_BLOCK = {"partition.num_blocks": "1", "partition.num_edges": "1", **ALONE}
PHOTOGRAPHS = {"mas.depth_weight": "0", "mas.normal_weight": "0"}
TEACHERS = {"mas.teacher_weight": "1"}


class Variant(NamedTuple):
    """A row of the table."""

    name: str
    title: str
    begins_with: str | None  # the variant whose first stages it shares
    settings: dict[str, str]


VARIANTS = (
    Variant("crop_merge", "blocks, cropped and merged", None, ALONE),
    # lmc.recovery and, for equal_surfels, surfels.capacity are added when they are known.
    Variant("steps", "blocks, + the steps of LMC and MAS", "crop_merge", NO_MAS),
    Variant("lmc", "+ LMC", "crop_merge", NO_MAS),
    Variant("mas_teachers", "+ MAS, teachers alone", "crop_merge", {**NO_LMC, **TEACHERS}),
    Variant("mas_photos", "+ MAS, photographs alone", "crop_merge", {**NO_LMC, **PHOTOGRAPHS}),
    Variant("mas", "+ MAS, the default", "crop_merge", NO_LMC),
    Variant("full_teachers", "+ LMC + MAS, teachers alone", "lmc", TEACHERS),
    Variant("full_photos", "+ LMC + MAS, photographs alone", "lmc", PHOTOGRAPHS),
    Variant("full", "+ LMC + MAS, the default", "lmc", {}),
    Variant("centralised", "one block", None, ONE_BLOCK),
    Variant("equal_surfels", "one block, as many surfels as + LMC + MAS", None, ONE_BLOCK),
)
NAMES = tuple(variant.name for variant in VARIANTS)


def share_stages(source: Path, target: Path) -> None:
    """Copies finished stages from one run to another that begins with the same ones."""
    old = Workdir(source)
    new = Workdir(target)
    if new.config.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    metrics = json.loads(old.metrics.read_text())
    for name in SHARED_STAGES:
        if old.checkpoints(name).is_dir():
            shutil.copytree(old.checkpoints(name), new.checkpoints(name), dirs_exist_ok=True)
    metrics |= {
        "stages": [row for row in metrics["stages"] if row["name"] in SHARED_STAGES],
        "final": None,
        "geometry": None,
    }
    new.metrics.write_text(json.dumps(metrics))
    if old.data.is_dir():  # a generated scene
        shutil.copytree(old.data, new.data, dirs_exist_ok=True)


def given_settings(given: dict[str, str]) -> Settings:
    """The settings of a config file with those of the command line."""
    argv = ["train", *(f"--{flag}={value}" for flag, value in given.items())]
    return parse_options(declare_flags(lambda _: None, "optional", argv), "optional", argv).settings


def common_capacity(given: dict[str, str], folder: Path) -> int:
    """`surfels.capacity` with which blocks have as many surfels as those that are pruned get by
    default: all rows begin with the same blocks.

    Args:
        given: flags of all variants.
        folder: of a seed, which keeps the number; a generated place is made in a folder of its own
            in it.
    """
    kept = folder / "capacity.txt"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        place = open_partitioned_scene(given_settings(given), Workdir(folder / "capacity"))
        files.write_text(kept, str(place.whole_capacity()))
    return int(kept.read_text())


def settings_of(variant: Variant, folder: Path) -> dict[str, str]:
    """The variant's settings, with those that depend on other variants.

    Args:
        variant: a row.
        folder: of all variants of this seed.
    """
    if variant.name == "steps":
        # LMC's recovery and the stages of MAS, as one training of the blocks without pruning.
        workdir = Workdir(folder / "crop_merge")
        settings = settings_file.load(workdir.config)
        partition = open_partitioned_scene(settings, workdir).partition
        settings.lmc.enabled = settings.mas.enabled = True
        more = total_steps(settings, partition) / settings.train.steps - 1
        return variant.settings | {"lmc.prune_ratio": "0", "lmc.recovery": str(more)}
    if variant.name == "equal_surfels":
        stages = Workdir(folder / "full").read_metrics()["stages"]
        capacity = str(stages[-1]["num_surfels_merged"])
        return variant.settings | {"surfels.capacity": capacity}
    return variant.settings


def processor_seconds() -> float:
    """Of all programs that this one has run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(variant: Variant, folder: Path, seed: int, given: list[str]) -> float:
    """Trains a variant, or lets it go on; the processor time of what it does not share."""
    if variant.begins_with:
        share_stages(folder / variant.begins_with, folder / variant.name)
    flags = dict(BASE)
    flags |= dict(flag.removeprefix("--").partition("=")[::2] for flag in given)
    flags["config.seed"] = str(seed)
    is_one_block = ONE_BLOCK.items() <= variant.settings.items()
    if not is_one_block and "config.surfels.capacity" not in flags:
        flags["config.surfels.capacity"] = str(common_capacity(flags, folder))
    flags |= {f"config.{name}": value for name, value in settings_of(variant, folder).items()}
    command = program("train", Workdir(folder / variant.name), flags)
    return timed(command, folder / f"{variant.name}.seconds")


def program(name: str, workdir: Workdir, flags: dict[str, str] | None = None) -> list[str]:
    """The command of one of the package's programs."""
    given = [f"--{flag}={value}" for flag, value in (flags or {}).items()]
    return [sys.executable, "-m", f"cosurfgs_jax.{name}", f"--workdir={workdir}", *given]


def run(command: list[str]) -> None:
    """Runs a program; ends this one with its exit code where that is not 0."""
    if status := subprocess.run(command).returncode:
        sys.exit(status)  # it has said why


def timed(command: list[str], spent: Path) -> float:
    """Runs a program, or lets it go on; the processor time that it took in all of its runs.

    Args:
        command: what to run; ends this program with its exit code where that is not 0.
        spent: a file that keeps the time of runs that were interrupted.
    """
    before = processor_seconds() - (float(spent.read_text()) if spent.exists() else 0.0)
    try:
        run(command)
    finally:
        spent.write_text(str(processor_seconds() - before))
    return processor_seconds() - before


def score(workdir: Workdir, seams: SeamMasks, has_mesh: bool) -> dict[str, Any]:
    """Scores of the merged model, drawn as a whole, and what its stages took."""
    settings = settings_file.load(workdir.config)
    partitioned = open_partitioned_scene(settings, workdir)
    surfels, _ = load_merged(settings, workdir, partitioned)
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
    stages = workdir.read_metrics()["stages"]
    row = {
        **scores_from_sums(sums)._asdict(),
        "surfels": len(surfels.alive),
        "trained_surfels": sum(stages[0]["num_surfels"]),
        "peak_mib": max(stage["peak_bytes_per_device"] for stage in stages) / MIB,
        "sent_mib": sum(stage.get("bytes_sent", 0) for stage in stages) / MIB,
    }
    if has_mesh and partitioned.scene.ground_truth is not None:
        row["f1"] = score_mesh(workdir, partitioned.scene)
    return row


def score_mesh(workdir: Workdir, scene: Any) -> list[float]:
    """F1 at fractions of the scene's width, the smallest first."""
    if not workdir.mesh.exists():
        run(program("extract_mesh", workdir))
    return f1_of(workdir.mesh, scene)


def f1_of(path: Path, scene: Any) -> list[float]:
    """F1 of a mesh file at fractions of the scene's width, the smallest first."""
    mesh = read_mesh_ply(path)
    return f1_at_widths(evaluation.compare_to_truth((mesh.vertices, mesh.triangles), scene).scores)


def f1_at_widths(scores: dict) -> list[float]:
    """F1 at fractions of the scene's width, the smallest first, of scores of `evaluate`."""
    return [at["f1"] for at in scores["thresholds"] if "of the width" in at["kind"]]


def spread(values: list[float], form: str) -> str:
    """Mean, and half of the range where there are several."""
    if any(value is None for value in values):
        return ""
    text = format(float(np.mean(values)), form)
    if len(values) > 1:
        text += f" ± {format((max(values) - min(values)) / 2, form.removeprefix('+'))}"
    return text


def f1_cell(rows: list[list[float]]) -> str:
    """F1 at each fraction of the width, of rows that `f1_at_widths` gives."""
    at = zip(*rows, strict=True)
    return " / ".join(spread(list(values), ".3f") for values in at)


def markdown(rows: list[list[str]]) -> str:
    """A table; its first row are the titles."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown.

    Args:
        results: rows by seed and name.
    """
    columns = [
        ("fitted PSNR", "psnr_fitted", ".2f"),
        ("PSNR", "psnr", ".2f"),
        ("at seams, fitted", "psnr_seam_fitted", ".2f"),
        ("SSIM", "ssim", ".4f"),
        ("surfels", "surfels", ",.0f"),
        ("own processor time, s", "processor_s", ".0f"),
        ("memory, MiB", "peak_mib", ",.0f"),
        ("sent by a device, MiB", "sent_mib", ",.0f"),
    ]
    has_mesh = any("f1" in row for rows in results.values() for row in rows.values())
    lines = [["variant", *(title for title, *_ in columns), *(["F1"] if has_mesh else [])]]
    for variant in VARIANTS:
        rows = [rows[variant.name] for rows in results.values() if variant.name in rows]
        if not rows:
            continue
        cells = [variant.title]
        cells += [spread([row[key] for row in rows], form) for _, key, form in columns]
        if has_mesh:
            cells.append(f1_cell([row["f1"] for row in rows if "f1" in row]))
        lines.append(cells)
    return markdown(lines)


def run_seed(seed: int, chosen: list[str], arguments: argparse.Namespace, results: dict) -> None:
    """Trains and scores the variants of one seed; rows that are there already are kept."""
    folder = arguments.workdir / str(seed)
    rows = results["seeds"].setdefault(str(seed), {})
    seams = None
    for variant in VARIANTS:
        row = rows.get(variant.name)
        if variant.name not in chosen or (row and ("f1" in row or not arguments.mesh)):
            continue
        seconds = train(variant, folder, seed, results["flags"])
        if seams is None:
            source = Workdir(folder / "crop_merge")  # the first one: it is there
            settings = settings_file.load(source.config)
            seams = SeamMasks(open_partitioned_scene(settings, source), settings)
        row = score(Workdir(folder / variant.name), seams, arguments.mesh)
        rows[variant.name] = row | {"processor_s": seconds}
        (arguments.workdir / "ablation.json").write_text(json.dumps(results, indent=2))
        (arguments.workdir / "ablation.md").write_text(table(results["seeds"]))


def parser_of(text: str | None, names: tuple[str, ...]) -> argparse.ArgumentParser:
    """The flags of a script that runs variants with several seeds.

    Args:
        text: the script's docstring.
        names: of all variants.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", default="0", help="with commas between")
    parser.add_argument("--only", default=",".join(names), help="variants, with commas between")
    return parser


def chosen_of(
    parser: argparse.ArgumentParser, flag: str, text: str, names: tuple[str, ...]
) -> list[str]:
    """The names in the text of a flag; ends the script where one is none of `names`."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(
            f"--{flag}: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}"
        )
    return chosen


def main() -> None:
    """Flags -> runs -> table."""
    parser = parser_of(__doc__, NAMES)
    parser.add_argument("--mesh", action="store_true", help="extract and score meshes, too")
    arguments, given = parser.parse_known_args()
    chosen = chosen_of(parser, "only", arguments.only, NAMES)
    # What others begin with, and where the seams are read from.
    chosen += ["full"] if "equal_surfels" in chosen else []
    chosen += [variant.begins_with for variant in VARIANTS if variant.name in chosen]
    chosen += ["crop_merge"]
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    saved = arguments.workdir / "ablation.json"
    results = {"flags": given, "seeds": {}}
    if saved.exists():
        results = json.loads(saved.read_text())
        if results["flags"] != given:
            parser.error(
                f"{saved}: expected the settings that its rows were made with, "
                f"{' '.join(results['flags']) or 'none'}, got {' '.join(given) or 'none'}; take "
                "another --workdir"
            )
    for seed in arguments.seeds.split(","):
        run_seed(int(seed), chosen, arguments, results)
    print(table(results["seeds"]))


if __name__ == "__main__":
    main()
