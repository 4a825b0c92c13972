"""What each choice of the training gives and costs: what makes a step cheaper, and each loss of the
surface, taken away alone and together; scores, processor time, memory, surfels.

python scripts/ablation_training.py --workdir=DIR [--seeds=0,1,2] [--only=default,drawn]
    [--depth_maps=plane,median,expected] [--config=FILE] [--config.NAME=VALUE ...]

Trains each variant of VARIANTS with the settings of --config (configs/default.py) and those given,
in a folder of its own, DIR/SEED/NAME, with one variant after the other, and scores it as `evaluate`
does. Where the true surface is known the depth of each model is fused, too, and the mesh scored;
with --depth_maps each kind of depth in turn. Interrupted, the same command goes on; several of them
may share the seeds or variants of one DIR. Writes DIR/ablation_training.json and
DIR/ablation_training.md of all that is there: with several seeds the mean and, after +-, half of
the range. Processor time is of the training alone, and memory of its process.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ablation import MIB, spread, timed

from cosurfgs_jax import settings_file
from cosurfgs_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
SINGLE = "loss.single_view_weight"
GEOMETRIC = "loss.multi_view_geometric_weight"
PHOTOMETRIC = "loss.multi_view_photometric_weight"
TRANSPARENCY = "loss.transparency_weight"
MULTI_VIEW = {GEOMETRIC: "0", PHOTOMETRIC: "0"}

DRAWN = {"loss.remember_depth": "false"}
EAGER = {"optim.lazy": "false"}
SCREEN_GRADIENTS = {"density.strategy": "adaptive"}
LONGER = 7 / 4  # of the steps given


class Variant(NamedTuple):
    """A row of the table."""

    name: str
    title: str
    settings: dict[str, str]
    longer: float = 1  # steps, as a multiple of those given


VARIANTS = (
    Variant("default", "the settings given", {}),
    Variant("drawn", "the neighbour's depth drawn in every step", DRAWN),
    Variant("dilated", "dilated steps", {"train.dilation": "2"}),
    Variant("undilated", "all pixels in all steps", {"train.dilation": "1"}),
    Variant("eager", "Adam for all surfels in every step", EAGER),
    Variant("gradients", "growth by screen gradients", SCREEN_GRADIENTS),
    Variant("longer", "7/4 of the steps", {}, LONGER),
    Variant(
        "plain",
        "all of these but the steps",
        {**DRAWN, **EAGER, **SCREEN_GRADIENTS, "train.dilation": "1"},
    ),
    Variant("no_gaps", "no points in gaps", {"surfels.fill_gaps": "false"}),
    Variant("whole_patches", "all pixels of a patch count", {"loss.patch_plane_px": "0"}),
    Variant("no_single_view", "without SV-Reg", {SINGLE: "0"}),
    Variant("no_geometric", "without the reprojection of MV-Reg", {GEOMETRIC: "0"}),
    Variant("no_patches", "without the patches of MV-Reg", {PHOTOMETRIC: "0"}),
    Variant("no_transparency", "without the transparency penalty", {TRANSPARENCY: "0"}),
    Variant("single_view", "SV-Reg alone", {**MULTI_VIEW, TRANSPARENCY: "0"}),
    Variant("multi_view", "MV-Reg alone", {SINGLE: "0", TRANSPARENCY: "0"}),
    Variant(
        "photometric", "photometric losses alone", {**MULTI_VIEW, SINGLE: "0", TRANSPARENCY: "0"}
    ),
)
NAMES = tuple(variant.name for variant in VARIANTS)
DEPTH_MAPS = ("plane", "median", "expected")
CLASSES = ("walls", "roofs", "ground")


def program(name: str, workdir: Workdir, *flags: str) -> list[str]:
    """The command of one of the package's programs."""
    return [sys.executable, "-m", f"cosurfgs_jax.{name}", f"--workdir={workdir}", *flags]


def train(variant: Variant, folder: Path, seed: int, given: dict[str, str]) -> float:
    """Trains a variant, or lets it go on; its processor time."""
    workdir = Workdir(folder / variant.name)
    first = Workdir(folder / VARIANTS[0].name)
    if first.data.is_dir() and not workdir.data.exists():  # a generated scene
        shutil.copytree(first.data, workdir.data)
    flags = given | {f"config.{name}": value for name, value in variant.settings.items()}
    flags["config.seed"] = str(seed)
    if variant.longer != 1:
        steps = settings_file.load(first.config).train.steps
        flags["config.train.steps"] = str(round(steps * variant.longer))
    command = program("train", workdir, *(f"--{name}={value}" for name, value in flags.items()))
    return timed(command, folder / f"{variant.name}.seconds")


def surface_of(scores: dict) -> dict[str, Any]:
    """F1 at fractions of the scene's width, the smallest first, and by classes."""

    def f1(at: dict) -> list[float]:
        return [row["f1"] for row in at["thresholds"] if "of the width" in row["kind"]]

    return {
        "f1": f1(scores),
        "classes": {
            name: [f1(scores["classes"][name])[0], scores["classes"][name]["normal_deg"]["median"]]
            for name in CLASSES
            if name in scores["classes"]
        },
    }


def score(workdir: Workdir, kinds: list[str], spent: Path) -> dict[str, Any]:
    """Scores of a trained variant: renders, and the mesh of each kind of depth."""
    has_truth = settings_file.load(workdir.config).data.path == "generated"
    surfaces = {}
    for kind in reversed(kinds):  # the mesh of the first one stays
        if has_truth:
            flag = f"--config.surface.depth_map={kind}"
            timed(program("extract_mesh", workdir, flag), spent)
        timed(program("evaluate", workdir), spent)
        metrics = workdir.read_metrics()
        if has_truth:
            surfaces[kind] = surface_of(metrics["geometry"])
    stages, final = metrics["stages"], metrics["final"]
    return {
        "psnr": final["psnr"],
        "psnr_fitted": final["psnr_color_corrected"],
        "ssim": final["ssim"],
        "surfels": final["num_surfels"],
        "peak_mib": max(stage["peak_bytes_per_device"] for stage in stages) / MIB,
        "surfaces": surfaces,
    }


def surface_cells(rows: list[dict], kinds: list[str]) -> list[str]:
    """F1 of each kind of depth, and F1 and angle of each class with the first."""
    cells = []
    for kind in kinds:
        at = zip(*(row["surfaces"][kind]["f1"] for row in rows), strict=True)
        cells.append(" / ".join(spread(list(values), ".3f") for values in at))
    for name in CLASSES:
        pairs = [row["surfaces"][kinds[0]]["classes"][name] for row in rows]
        f1, angle = (list(values) for values in zip(*pairs, strict=True))
        cells.append(f"{spread(f1, '.3f')}, {spread(angle, '.1f')}°")
    return cells


def table(results: dict[str, dict[str, dict]], kinds: list[str]) -> str:
    """Markdown.

    Args:
        results: rows by seed and name.
        kinds: of depth that were fused.
    """
    columns = [
        ("PSNR, dB", "psnr", ".2f"),
        ("fitted, dB", "psnr_fitted", ".2f"),
        ("SSIM", "ssim", ".4f"),
        ("surfels", "surfels", ",.0f"),
        ("processor time, s", "processor_s", ".0f"),
        ("memory, MiB", "peak_mib", ",.0f"),
    ]
    has_truth = any(row["surfaces"] for rows in results.values() for row in rows.values())
    titles = ["variant", *(title for title, *_ in columns)]
    if has_truth:
        titles += [f"F1, {kind} depth" for kind in kinds]
        titles += [f"{name}: F1, normals" for name in CLASSES]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for variant in VARIANTS:
        rows = [rows[variant.name] for rows in results.values() if variant.name in rows]
        if rows:
            cells = [variant.title]
            cells += [spread([row[key] for row in rows], form) for _, key, form in columns]
            cells += surface_cells(rows, kinds) if has_truth else []
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Flags -> runs -> table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", default="0", help="with commas between")
    parser.add_argument("--only", default=",".join(NAMES), help="variants, with commas between")
    parser.add_argument("--depth_maps", default="plane", help="kinds, with commas between")
    arguments, flags = parser.parse_known_args()
    chosen, kinds = arguments.only.split(","), arguments.depth_maps.split(",")
    for name, got, known in (("only", chosen, NAMES), ("depth_maps", kinds, DEPTH_MAPS)):
        if unknown := set(got) - set(known):
            parser.error(
                f"--{name}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}"
            )
    given = {"config": str(ROOT / "configs" / "default.py")}
    given |= dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    for seed in arguments.seeds.split(","):
        folder = arguments.workdir / seed
        folder.mkdir(parents=True, exist_ok=True)
        # The first variant is what the others take the photographs and the steps from.
        for variant in VARIANTS:
            path = folder / f"{variant.name}.json"
            is_wanted = variant.name in chosen or variant is VARIANTS[0]
            if is_wanted and not path.exists():
                row = {"processor_s": train(variant, folder, int(seed), given)}
                spent = folder / f"{variant.name}.scoring_seconds"
                row |= score(Workdir(folder / variant.name), kinds, spent)
                path.write_text(json.dumps(row))
    results: dict[str, dict] = {}
    for path in sorted(arguments.workdir.glob("*/*.json")):
        results.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text())
    (arguments.workdir / "ablation_training.json").write_text(json.dumps(results, indent=2))
    (arguments.workdir / "ablation_training.md").write_text(table(results, kinds))
    print(table(results, kinds))


if __name__ == "__main__":
    main()
