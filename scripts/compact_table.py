"""The compact form of a trained model (`model/compact.py`): what it weighs, and what it costs.

python scripts/compact_table.py --workdir=DIR [--variants=default,coarse,...]

DIR is the folder of a run that has a model; it is read only. The first row is the model as it is,
the others the same surfels encoded and decoded, with other steps where VARIANTS says so. Scored on
the test views; "depth" is the median difference of depth to the first row, relative.
"""

import argparse
import io
from pathlib import Path

import numpy as np

from cosurfgs_jax import host_memory, program, settings_file
from cosurfgs_jax.collab.stage_scores import NUM_SUMS, score_view, scores_from_sums
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.model import compact
from cosurfgs_jax.outputs.trained import Trained, load_trained
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.types import SurfelParams, Surfels, on_host
from cosurfgs_jax.workdir import Workdir

# Steps that differ from those of the module.
VARIANTS = {
    "default": {},
    "fine": {
        "MEAN_STEP": compact.MEAN_STEP / 4,
        "QUAT_STEP": compact.QUAT_STEP / 4,
        "SH_STEP": compact.SH_STEP / 4,
        "HIGHER_SH_STEP": compact.HIGHER_SH_STEP / 4,
    },
    "coarse means": {"MEAN_STEP": 0.2},
    "coarse rotations": {"QUAT_STEP": 4 * compact.QUAT_STEP},
    "fine means": {"MEAN_STEP": 0.025},
    "fine scales": {"LOG_SCALE_STEP": 0.01},
    "fine opacities": {"LOGIT_STEP": 1 / 32},
    "higher bands by 0.03": {"HIGHER_SH_STEP": 0.03},
}


def encoded(params: SurfelParams, steps: dict) -> tuple[SurfelParams, int]:
    """The surfels that come back, and their bytes as a file."""
    before = {name: getattr(compact, name) for name in steps}
    for name, value in steps.items():
        setattr(compact, name, value)
    try:
        arrays = compact.encode(params)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return compact.decode(arrays), len(file.getvalue())
    finally:
        for name, value in before.items():
            setattr(compact, name, value)


def draw(trained: Trained, params: SurfelParams, images: ImageStore) -> tuple[list, np.ndarray]:
    """The depths of the test views, and the sums of their scores."""
    surfels = Surfels.of(params, np.ones(len(params.means), bool))
    render = trained.render_fn(surfels, Maps.GEOMETRY)
    depths = []
    sums = np.zeros(NUM_SUMS)
    for view in trained.partitioned.scene.test_views:
        maps = render(int(view))
        photo = images.load(int(view))
        sums += score_view(maps["color"], photo, np.zeros(photo.shape[:2], bool))
        depths.append(np.where(maps["alpha"] > 0.5, maps["depth"], np.nan))
    return depths, sums


def main() -> None:
    """Flags -> rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--variants", default="default")
    arguments = parser.parse_args()
    program.start_devices(0)
    host_memory.keep_freed()
    workdir = Workdir(arguments.workdir.absolute())
    trained = load_trained(settings_file.load(workdir.config), workdir)
    whole = SurfelParams(
        **{
            name: on_host(np.asarray(leaf))
            for name, leaf in trained.surfels.params.by_name().items()
        }
    )
    count = len(whole.means)
    size = sum(leaf.nbytes for leaf in whole.by_name().values())
    rows = [("float32", whole, size)]
    for name in filter(None, arguments.variants.split(",")):
        rows.append((name, *encoded(whole, VARIANTS[name])))
    print("| form | MB | bytes a surfel | PSNR (fitted) | SSIM | depth |")
    print("|---|---|---|---|---|---|")
    with ImageStore(trained.partitioned.scene, 4096) as images:
        expected = None
        for name, params, num_bytes in rows:
            depths, sums = draw(trained, params, images)
            expected = expected or depths
            scores = scores_from_sums(sums)
            ratios = [np.abs(a / b - 1).ravel() for a, b in zip(depths, expected, strict=True)]
            difference = np.nanmedian(np.concatenate(ratios))
            print(
                f"| {name} | {num_bytes / 1e6:.2f} | {num_bytes / count:.1f} | {scores.psnr:.3f} "
                f"({scores.psnr_fitted:.3f}) | {scores.ssim:.5f} | {difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
