"""A table of published scenes: what was published beside what was measured here, and how each was.

python scripts/paper_table.py building=runs/building rubble=DATASET [--runs=DIR] [--out=FILE.md]
[--flags="--config.train.steps=100 ..."] [--gt_points=FILE.ply --gt_transform=FILE.txt]

Each argument is a scene (a file of configs/scenes/) and a folder: the workdir of a run that has
been evaluated, or a dataset, which is trained with the preset of the scene, meshed and evaluated
first, in DIR/<scene> (runs/ without --runs); the same command again goes on. --flags are for
training. The points of --gt_points are those of one scene alone.

Numbers are not comparable across protocols. "plain" scores renders as they are; "fitted" after a
quadratic fit of the colours to each test photograph; "nearest view's" renders with the appearance
of the nearest training photograph; "not said": what is known here does not tell. Published LPIPS
are by AlexNet or VGG-16, and often "unscaled": the scripts of 3DGS give the network pictures in
[0, 1] where it expects [-1, 1].
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from cosurfgs_jax.workdir import Workdir

PLAIN = "plain"
FITTED = "fitted"
NEAREST = "nearest view's"
UNKNOWN = "not said"
_PROGRAMS_AFTER = ("extract_mesh", "evaluate")


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one scene; None where it is not known. `time` and `memory` say what they are
    of.
    """

    method: str
    appearance: str = UNKNOWN  # of test photographs
    psnr: float | None = None  # dB
    ssim: float | None = None
    lpips: float | None = None
    lpips_unscaled: float | None = None  # with [0, 1] for [-1, 1], as scripts of 3DGS have it
    f1: float | None = None
    surfels: int | None = None
    time: str = ""
    memory: str = ""
    is_second_hand: bool = False  # read in a review, not in the paper


def _vast(psnr: float, ssim: float, lpips: float, time: str, memory: str) -> Row:
    return Row("PGSR + VastGaussian", psnr=psnr, ssim=ssim, lpips=lpips, time=time, memory=memory)


def _cosurfgs(time: str, memory: str) -> Row:
    """Of the paper's tables of quality nothing is known here."""
    return Row("CoSurfGS", time=f"{time} h with SfM", memory=f"{memory} GB, evaluating")


# As the papers have them. GauU-Scene's F1 is of the scenes Russian Building, Residence and Modern
# Building, in this order.
PUBLISHED: dict[str, tuple[Row, ...]] = {
    "building": (
        _cosurfgs("3:49", "2.23"),
        _vast(21.63, 0.720, 0.300, "5:30 h with SfM", "3.14 GB, evaluating"),
        Row("CityGS-X", psnr=22.76, ssim=0.817, lpips=0.191),
        Row("MetroGS", NEAREST, psnr=23.06, ssim=0.787, lpips=0.173),
        Row("Momentum-GS", psnr=23.65, is_second_hand=True),
    ),
    "rubble": (
        _cosurfgs("3:28", "2.63"),
        _vast(25.32, 0.768, 0.274, "4:30 h with SfM", "3.15 GB, evaluating"),
        Row("CityGS-X", psnr=26.15, ssim=0.823, lpips=0.210),
        Row("MetroGS", NEAREST, psnr=27.48, ssim=0.826, lpips=0.147),
    ),
    "residence": (
        _cosurfgs("3:30", "2.35"),
        Row("CityGaussianV2", psnr=21.15),
        Row("CityGS-X", psnr=22.44),
        Row("MetroGS", NEAREST, psnr=23.38),
    ),
    "sci_art": (
        _cosurfgs("4:50", "1.06"),
        Row("CityGaussianV2", psnr=20.66),
        Row("CityGS-X", psnr=22.77),
        Row("MetroGS", NEAREST, psnr=25.96),
    ),
    "campus": (_cosurfgs("6:00", "2.22"),),
    "matrix_city": (
        Row("CityGaussianV2", f1=0.556),
        Row("CityGS-X", f1=0.581),
        Row("MetroGS", NEAREST, f1=0.677),
        Row("UrbanQGS", f1=0.695, is_second_hand=True),
    ),
    "gauu_scene": (
        Row("2DGS, Russian Building", f1=0.531),
        Row("CityGaussianV2, Russian Building", f1=0.544),
        Row("CityGaussianV2, Residence", f1=0.467),
        Row("CityGaussianV2, Modern Building", f1=0.492),
        Row("MetroGS, Russian Building", NEAREST, f1=0.585),
        Row("MetroGS, Residence", NEAREST, f1=0.494),
        Row("MetroGS, Modern Building", NEAREST, f1=0.524),
    ),
    "blended_mvs": (),
}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h"


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _results_of(workdir: Workdir) -> dict[str, float]:
    """Name of the measure -> value, of the last model in results.json."""
    models = list(_read(workdir.results).values())
    return models[-1] if models else {}


def measured_rows(workdir: Workdir) -> list[Row]:
    """What a run's files say: plain, fitted, and with the nearest view's exposure."""
    metrics = _read(workdir.metrics)
    final = metrics.get("final")
    stages = metrics.get("stages") or []
    if not final or not stages:
        raise SystemExit(
            f"{workdir}: expected a run that has been trained and evaluated, got no scores; run "
            f"`cosurfgs evaluate --workdir={workdir}` first"
        )
    results = _results_of(workdir)
    thresholds = (metrics.get("geometry") or {}).get("thresholds") or [{}]
    peak = max((stage.get("peak_bytes_per_device") or 0 for stage in stages), default=0)
    plain = Row(
        "cosurfgs_jax",
        PLAIN,
        psnr=final["psnr"],
        ssim=final["ssim"],
        lpips=results.get("LPIPS"),
        lpips_unscaled=results.get("LPIPS_unscaled"),
        f1=thresholds[0].get("f1"),
        surfels=final["num_surfels"],
        time=f"{_clock(sum(stage['seconds'] for stage in stages))} of training",
        memory=f"{peak / 1e9:.2f} GB a device, training" if peak else "",
    )
    rows = [plain]
    for appearance, kind in ((FITTED, "_color_corrected"), (NEAREST, "_nearest_view")):
        if f"psnr{kind}" in final:
            rows.append(
                dataclasses.replace(
                    plain,
                    appearance=appearance,
                    psnr=final[f"psnr{kind}"],
                    ssim=final[f"ssim{kind}"],
                    lpips=results.get(f"LPIPS{kind}"),
                    lpips_unscaled=results.get(f"LPIPS_unscaled{kind}"),
                )
            )
    return rows


def _protocol(workdir: Workdir) -> str:
    """One sentence on what was measured here."""
    config = _read(workdir.config)
    metrics = _read(workdir.metrics)
    geometry = metrics.get("geometry")
    words = [
        f"photographs shrunk by {config['data']['downscale']}",
        f"split {config['data']['split']}",
        f"{metrics['final']['num_test_views']} test photographs",
        f"{config['train']['steps']} steps a block",
        f"{config['partition']['num_blocks']} blocks",
    ]
    if geometry and geometry["thresholds"]:
        first = geometry["thresholds"][0]
        words.append(f"F1 at {first['tau']:.4g} {geometry['unit']} ({first['kind']})")
    return f"cosurfgs_jax: {', '.join(words)}."


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _lpips_cell(row: Row) -> str:
    text = _cell(row.lpips, ".3f")
    if row.lpips_unscaled is not None:
        text += f" ({row.lpips_unscaled:.3f} unscaled)"
    return text


def _line(row: Row) -> str:
    cells = [
        row.method + " (second-hand)" * row.is_second_hand,
        row.appearance,
        _cell(row.psnr, ".2f"),
        _cell(row.ssim, ".3f"),
        _lpips_cell(row),
        _cell(row.f1, ".3f"),
        _cell(row.surfels, ","),
        row.time,
        row.memory,
    ]
    return f"| {' | '.join(cells)} |"


def table(scene: str, workdir: Workdir) -> str:
    """A scene's table as Markdown, published rows first."""
    rows = [*PUBLISHED[scene], *measured_rows(workdir)]
    lines = [
        f"## {scene}",
        "",
        _protocol(workdir),
        "",
        "| method | appearance of test photographs | PSNR | SSIM | LPIPS | F1 | surfels | time "
        "| memory |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def run_program(name: str, *arguments: str) -> None:
    """Runs a program of the package; ends where it fails, as it has said why."""
    command = [sys.executable, "-m", f"cosurfgs_jax.{name}", *arguments]
    code = subprocess.run(command).returncode
    if code:
        raise SystemExit(code)


def make_run(scene: str, dataset: Path, workdir: Workdir, flags: list[str], truth: list[str]):
    """Trains, meshes and evaluates a dataset with the preset of its scene."""
    run_program(
        "train",
        f"--preset=scenes/{scene}",
        f"--config.data.path={dataset}",
        f"--workdir={workdir}",
        *flags,
    )
    for name in _PROGRAMS_AFTER:
        flags = [*truth, "--with_nearest_exposure"] if name == "evaluate" else []
        run_program(name, f"--workdir={workdir}", *flags)


def _scenes(texts: list[str]) -> list[tuple[str, Path]]:
    found = []
    for text in texts:
        scene, sign, folder = text.partition("=")
        if not sign or scene not in PUBLISHED or not Path(folder).is_dir():
            raise SystemExit(
                f"{text}: expected SCENE=FOLDER with a scene of {', '.join(PUBLISHED)} and a "
                "folder that is there"
            )
        found.append((scene, Path(folder)))
    return found


def main(argv: list[str] | None = None) -> None:
    """Flags -> runs where they are missing -> the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="+", metavar="SCENE=FOLDER")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--flags", default="", type=shlex.split)
    parser.add_argument("--gt_points")
    parser.add_argument("--gt_transform")
    arguments = parser.parse_args(argv)
    truth = [
        f"--{name}={getattr(arguments, name)}"
        for name in ("gt_points", "gt_transform")
        if getattr(arguments, name)
    ]
    texts = []
    for scene, folder in _scenes(arguments.scenes):
        workdir = Workdir(folder)
        if not workdir.config.is_file():
            workdir = Workdir(arguments.runs / scene)
            make_run(scene, folder, workdir, list(arguments.flags), truth)
        texts.append(table(scene, workdir))
        print(texts[-1])
    if arguments.out:
        arguments.out.write_text("\n".join(texts))


if __name__ == "__main__":
    main()
