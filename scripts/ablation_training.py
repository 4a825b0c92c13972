"""What each choice of the training gives and costs: what makes a step cheaper, and each loss of the
surface, taken away alone and together; scores, processor time, memory, surfels.

python scripts/ablation_training.py --workdir=DIR [--seeds=0,1,2] [--only=default,drawn]
    [--depth_maps=plane,median,expected] [--config=FILE] [--config.NAME=VALUE ...]

Trains each variant of VARIANTS with the settings of --config (configs/default.py) and those given,
in a folder of its own, DIR/SEED/NAME, one after the other, and scores it as `evaluate` does. Of a
generated place, whose true surface is known, the depth of each model is fused, too, and the mesh
scored; with --depth_maps each kind of depth in turn. Interrupted, the same command goes on; two of
them may share a DIR if they have other seeds. Writes DIR/ablation_training.json and
DIR/ablation_training.md of all that is there: with several seeds the mean and, after +-, half of
the range. Processor time is of the training alone, memory of its process, a slope error how much
steeper than the exact surface the mesh is (median; see `evaluate`).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ablation import (
    MIB,
    chosen_of,
    f1_at_widths,
    f1_cell,
    given_settings,
    markdown,
    parser_of,
    program,
    run,
    spread,
    timed,
)

from cosurfgs_jax import files, settings_file
from cosurfgs_jax.data import generated
from cosurfgs_jax.data.capture import Source
from cosurfgs_jax.metrics.surface_classes import CLASSES
from cosurfgs_jax.settings import Settings
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
        "the dearer choices together",
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


def take_photographs(settings: Settings, folder: Path, workdir: Workdir) -> None:
    """Gives a run the generated place, which is made once and not in the time of a training."""
    photographs = folder / "photographs"
    source = Source(photographs, settings.data, settings.generated, photographs)
    town = generated.detects(source)
    if town is None or workdir.data.exists():
        return
    generated.read(town)
    workdir.root.mkdir(exist_ok=True)
    workdir.data.symlink_to(photographs.absolute(), target_is_directory=True)


def train(variant: Variant, folder: Path, seed: int, given: dict[str, str]) -> float:
    """Trains a variant, or lets it go on; its processor time."""
    workdir = Workdir(folder / variant.name)
    settings = given_settings(given)
    take_photographs(settings, folder, workdir)
    flags = given | {f"config.{name}": value for name, value in variant.settings.items()}
    flags["config.seed"] = str(seed)
    if variant.longer != 1:
        flags["config.train.steps"] = str(round(settings.train.steps * variant.longer))
    return timed(program("train", workdir, flags), folder / f"{variant.name}.seconds")


def surface_of(scores: dict) -> dict[str, Any]:
    """F1 at fractions of the scene's width, the smallest first; and by classes the first of them,
    with the median angle and slope error of the normals, degrees.
    """
    classes = {}
    for name, of_class in scores.get("classes", {}).items():
        normal = of_class["normal_deg"] or {}
        angles = [normal.get("median"), normal.get("median_slope_error")]
        classes[name] = [f1_at_widths(of_class)[0], *angles]
    return {"f1": f1_at_widths(scores), "classes": classes}


def score(workdir: Workdir, kinds: list[str]) -> dict[str, Any]:
    """Scores of a trained variant: renders, and the mesh of each kind of depth."""
    surfaces = {}
    if settings_file.load(workdir.config).data.path == generated.PATH:
        for kind in reversed(kinds):  # the mesh of the first one stays
            run(program("extract_mesh", workdir, {"config.surface.depth_map": kind}))
            run(program("evaluate", workdir))
            surfaces[kind] = surface_of(workdir.read_metrics()["geometry"])
    else:
        run(program("evaluate", workdir))
    metrics = workdir.read_metrics()
    stages, final = metrics["stages"], metrics["final"]
    return {
        "psnr": final["psnr"],
        "psnr_fitted": final["psnr_color_corrected"],
        "ssim": final["ssim"],
        "surfels": final["num_surfels"],
        "peak_mib": max(stage["peak_bytes_per_device"] for stage in stages) / MIB,
        "surfaces": surfaces,
    }


def class_cells(rows: list[dict], kind: str) -> list[str]:
    """For each class of `CLASSES` F1, angle and slope error with one kind of depth."""
    cells = []
    for name in CLASSES:
        values = [row["surfaces"][kind]["classes"].get(name, [None] * 3) for row in rows]
        forms = (".3f", ".1f", "+.1f")
        texts = map(spread, map(list, zip(*values, strict=True)), forms)
        cells.append(", ".join(filter(None, texts)))
    return cells


def surface_cells(rows: list[dict], kinds: list[str]) -> list[str]:
    """F1 of each kind of depth, and the cells of the classes with the first."""
    cells = [f1_cell([row["surfaces"][kind]["f1"] for row in rows]) for kind in kinds]
    return cells + class_cells(rows, kinds[0])


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
        titles += [f"{name}: F1, angle, slope error" for name in CLASSES]
    lines = [titles]
    for variant in VARIANTS:
        rows = [rows[variant.name] for rows in results.values() if variant.name in rows]
        if rows:
            cells = [variant.title]
            cells += [spread([row[key] for row in rows], form) for _, key, form in columns]
            cells += surface_cells(rows, kinds) if has_truth else []
            lines.append(cells)
    return markdown(lines)


def main() -> None:
    """Flags -> runs -> table."""
    parser = parser_of(__doc__, NAMES)
    parser.add_argument("--depth_maps", default="plane", help="kinds, with commas between")
    arguments, flags = parser.parse_known_args()
    chosen = chosen_of(parser, "only", arguments.only, NAMES)
    kinds = chosen_of(parser, "depth_maps", arguments.depth_maps, DEPTH_MAPS)
    given = {"config": str(ROOT / "configs" / "default.py")}
    given |= dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    made_with = {"flags": given, "depth_maps": kinds}
    saved = arguments.workdir / "flags.json"
    if saved.exists() and (found := json.loads(saved.read_text())) != made_with:
        parser.error(
            f"{saved}: expected what its rows were made with, {found}, got {made_with}; take "
            "another --workdir"
        )
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(saved, made_with)
    for seed in arguments.seeds.split(","):
        folder = arguments.workdir / seed
        folder.mkdir(exist_ok=True)
        for variant in VARIANTS:
            path = folder / f"{variant.name}.json"
            if variant.name in chosen and not path.exists():
                row = {"processor_s": train(variant, folder, int(seed), given)}
                files.write_json(path, row | score(Workdir(folder / variant.name), kinds))
    results: dict[str, dict] = {}
    for path in sorted(arguments.workdir.glob("*/*.json")):
        results.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text())
    files.write_json(arguments.workdir / "ablation_training.json", results)
    (arguments.workdir / "ablation_training.md").write_text(table(results, kinds))
    print(table(results, kinds))


if __name__ == "__main__":
    main()
