"""Scores of one render against its photograph: as it is, with its colours fitted, and with the
exposure of another view.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cosurfgs_jax import metrics, pictures
from cosurfgs_jax.data.scene import Scene

_HIGHEST_PSNR = 100.0  # stands for "equal": JSON has no infinity
_ALIKE_COSINE = np.cos(np.deg2rad(45))  # between optical axes, as `geometry.view_pairs` has it
# What follows a measure's name, by what was done to the render's colours.
_FITTED = "_color_corrected"
_NEAREST = "_nearest_view"
TITLES = {
    f"{key}{kind}": f"{title}{kind}"
    for kind in ("", _FITTED, _NEAREST)
    for key, title in {
        "ssim": "SSIM",
        "psnr": "PSNR",
        "lpips": "LPIPS",
        "lpips_unscaled": "LPIPS_unscaled",
    }.items()
}
_ssim = jax.jit(metrics.ssim)


class MoreScores(NamedTuple):
    """What is measured only if it is asked for; None: it is not.

    | field           | content                                                               |
    |-----------------|-----------------------------------------------------------------------|
    | `lpips_weights` | of the network that LPIPS compares with                               |
    | `transforms`    | f64[V,3,4], matrix and offset of colours for each view: the exposure  |
    |                 | of the nearest training view (`nearest_exposures`)                    |
    """

    lpips_weights: metrics.LpipsWeights | None = None
    transforms: np.ndarray | None = None


NOTHING_MORE = MoreScores()


# Weights are arguments: as constants they would be compiled in, 60 MB of them.
@functools.partial(jax.jit, static_argnames=("network",))
def _lpips(image, truth, mask, arrays, network: str):
    weights = metrics.LpipsWeights(*arrays, network)
    return [
        metrics.lpips(image, truth, weights, mask, is_unscaled=is_unscaled)
        for is_unscaled in (False, True)
    ]


def _scores(
    render: np.ndarray,
    photo: np.ndarray,
    mask: np.ndarray | None,
    lpips_weights: metrics.LpipsWeights | None,
) -> dict[str, float]:
    a, b = (jnp.asarray(image, jnp.float32) / 255 for image in (render, photo))
    kept = None if mask is None else jnp.asarray(mask)
    scores = {
        "psnr": min(float(metrics.psnr(a, b, kept)), _HIGHEST_PSNR),
        "ssim": float(_ssim(a, b, kept)),
    }
    if lpips_weights is not None:
        *arrays, network = lpips_weights
        found = map(float, _lpips(a, b, kept, tuple(arrays), network=network))
        scores |= zip(("lpips", "lpips_unscaled"), found, strict=True)
    return scores


def _recolored(render: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """A render u8[H,W,3] with another exposure, [matrix, offset] f64[3,4]."""
    colors = render / np.float32(255) @ transform[:, :3].T.astype(np.float32)
    return pictures.to_uint8(colors + transform[:, 3].astype(np.float32)[None, None])


def scores_of_view(
    render: np.ndarray,
    photo: np.ndarray,
    mask: np.ndarray | None,
    transform: np.ndarray | None,
    lpips_weights: metrics.LpipsWeights | None,
) -> dict[str, float]:
    """PSNR, SSIM, and LPIPS where its weights are given, under the names of `TITLES`.

    Args:
        render, photo: u8[H,W,3].
        mask: bool[H,W], True = counts; None = every pixel counts.
        transform: f64[3,4], of the other exposure; None: it is not scored.
        lpips_weights: of its network; None: it is not measured.
    """
    corrected = metrics.color_correct(render / np.float32(255), photo / np.float32(255), mask)
    kinds = {"": render, _FITTED: pictures.to_uint8(corrected)}
    if transform is not None:
        kinds[_NEAREST] = _recolored(render, transform)
    return {
        f"{key}{kind}": value
        for kind, image in kinds.items()
        for key, value in _scores(image, photo, mask, lpips_weights).items()
    }


def nearest_exposures(scene: Scene, exposures: np.ndarray) -> np.ndarray:
    """The exposure of the nearest training view that looks the same way, f64[V,3,4]; of training
    views their own. Where none looks the same way, that of the nearest of all.

    Args:
        scene: whose views they are.
        exposures: f64[V,3,4] of all views; only those of training views are used.
    Source: ours; published scores that use the appearance of a training view do not say how it is
        chosen beyond that it is the nearest.
    """
    centers = scene.views.centers
    axes = scene.views.camera_from_dataset[:, 2, :3]
    chosen = exposures.copy()
    train = scene.train_views
    for view in scene.test_views:
        distances = np.linalg.norm(centers[train] - centers[view], axis=1)
        is_alike = axes[train] @ axes[view] > _ALIKE_COSINE
        if is_alike.any():
            distances = np.where(is_alike, distances, np.inf)
        chosen[view] = exposures[train[distances.argmin()]]
    return chosen
