"""What each geometric loss and each kind of depth gives: F1 of the mesh against exact surfaces, on
a scene that has them.

python scripts/ablation_surface.py --workdir=DIR [--only=photometric,all] [--config.NAME=VALUE ...]

Trains configs/default.py on the generated town with some of the losses, each in a folder of its own
below DIR, fuses the plane depth of each model (of the first and the last also the median and the
expected depth), and scores the meshes as `evaluate` does. Interrupted, the same command goes on.
Writes DIR/ablation_surface.json and DIR/ablation_surface.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SINGLE = "loss.single_view_weight"
GEOMETRIC = "loss.multi_view_geometric_weight"
PHOTOMETRIC = "loss.multi_view_photometric_weight"
TRANSPARENCY = "loss.transparency_weight"
# Name, title, and the weights that are 0.
VARIANTS = (
    ("photometric", "photometric alone", (SINGLE, GEOMETRIC, PHOTOMETRIC, TRANSPARENCY)),
    ("single_view", "+ SV-Reg", (GEOMETRIC, PHOTOMETRIC, TRANSPARENCY)),
    ("multi_view", "+ MV-Reg", (SINGLE, TRANSPARENCY)),
    ("both", "+ SV-Reg + MV-Reg", (TRANSPARENCY,)),
    ("all", "+ no light passes through", ()),
)
DEPTH_MAPS = ("plane", "median", "expected")
FUSED_THREE_TIMES = ("photometric", "all")


def program(name: str, workdir: Path, *arguments: str) -> None:
    """Runs one of the package's programs."""
    subprocess.run(
        [sys.executable, "-m", f"cosurfgs_jax.{name}", f"--workdir={workdir}", *arguments],
        check=True,
    )


def run(name: str, absent: tuple[str, ...], workdir: Path, overrides: list[str]) -> dict:
    """Trains one variant, fuses it and scores the meshes; what is there already is kept."""
    folder = workdir / name
    first = workdir / VARIANTS[0][0] / "data"
    if first.is_dir() and not folder.exists():
        shutil.copytree(first, folder / "data")
    program(
        "train",
        folder,
        f"--config={ROOT / 'configs' / 'default.py'}",
        *overrides,
        *(f"--config.{weight}=0" for weight in absent),
    )
    row = {"surface": {}}
    for kind in reversed(
        DEPTH_MAPS if name in FUSED_THREE_TIMES else DEPTH_MAPS[:1]
    ):  # the mesh of plane depth stays
        path = folder / f"scores_{kind}.json"
        if not path.exists():
            program("extract_mesh", folder, f"--config.surface.depth_map={kind}")
            program("evaluate", folder)
            path.write_text((folder / "metrics.json").read_text())
        scores = json.loads(path.read_text())
        if scores["geometry"] is None:
            sys.exit(f"{folder}: expected a scene with ground truth, found none")
        row |= {
            key: scores["final"].get(key)
            for key in ("psnr", "ssim", "num_surfels", "depth", "normal_errors_deg")
        }
        row["surface"][kind] = scores["geometry"]
    return row


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    titles = [
        "training",
        *(f"F1 of {kind} depth" for kind in DEPTH_MAPS),
        "precision, recall (plane)",
        "PSNR",
        "SSIM",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, title, _ in VARIANTS:
        if name in results:
            shares = {
                kind: [at for at in scores["thresholds"] if "of the width" in at["kind"]]
                for kind, scores in results[name]["surface"].items()
            }
            cells = [
                title,
                *(
                    " / ".join(f"{at['f1']:.3f}" for at in shares.get(kind, []))
                    for kind in DEPTH_MAPS
                ),
                f"{shares['plane'][0]['precision']:.3f}, {shares['plane'][0]['recall']:.3f}",
                f"{results[name]['psnr']:.2f} dB",
                f"{results[name]['ssim']:.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Flags -> runs -> table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument(
        "--only", default="", help="names of variants, with commas between; empty = all"
    )
    arguments, overrides = parser.parse_known_args()
    known = {name for name, *_ in VARIANTS}
    if unknown := set(filter(None, arguments.only.split(","))) - known:
        parser.error(
            f"--only: expected some of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}"
        )
    results = {
        name: run(name, absent, arguments.workdir, overrides)
        for name, _, absent in VARIANTS
        if not arguments.only or name in arguments.only.split(",")
    }
    (arguments.workdir / "ablation_surface.json").write_text(json.dumps(results, indent=2))
    (arguments.workdir / "ablation_surface.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
