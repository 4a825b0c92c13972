"""Operands of the rasterizer that are finite and far from everything ordinary: where products and
powers leave float32. What passes the kernels' check of a surfel must give finite maps and
gradients.
"""

import dataclasses

import numpy as np
import raster_cases as cases

NUM_KINDS_OF_CAMERAS = 3


def hostile_cloud(seed: int) -> cases.Case:
    """The random cloud with extreme numbers in a random share of its places, at the edge of what is
    drawn and beyond, and a camera between ordinary and absurd.
    """
    rng = np.random.default_rng([17, seed])
    case = cases.random_cloud(seed)
    count = cases.COUNT

    def spoilt(values, extremes, fractions):
        is_spoilt = rng.uniform(size=values.shape) < rng.choice(fractions)
        return np.where(is_spoilt, rng.choice(np.array(extremes), values.shape), values)

    def factors(extremes):
        return np.where(rng.uniform(size=count) < 0.3, rng.choice(np.array(extremes), count), 1)

    quats = case.quats * factors([1e-18, 1e18, 1e-11, 1e10])[:, None]
    zeros = rng.uniform(size=quats.shape) < rng.choice([0, 0.2])
    colors = factors([1e5, -1e5, 1e-38, 0, 1e7, 1e38])[:, None, None]
    intrinsics = case.intrinsics.copy()
    zoom = [1, 1e-3, 1e5][seed % NUM_KINDS_OF_CAMERAS]
    intrinsics[0, 0] *= zoom
    intrinsics[1, 1] *= rng.choice([1, zoom])
    spoilt_case = case.replace(
        means=spoilt(case.means, [0, 1e-30, -1e-30, 1e9, -1e9, 1e5, -1e5], [0, 0.05, 0.3]),
        log_scales=spoilt(case.log_scales, [20.7, -200, -3e38, 10, -20, -87, 5], [0, 0.1, 0.5]),
        logit_opacities=spoilt(
            case.logit_opacities, [1e6, -1e6, 1e7, 3e38, -3e38, 88, -88, 16, -5.541], [0, 0.3, 0.7]
        ),
        quats=np.where(zeros, 0, quats),
        sh=case.sh * colors,
        alive=np.ones(count, bool),
        intrinsics=intrinsics,
    )
    return dataclasses.replace(spoilt_case, near=[0.05, 1e-6][seed // NUM_KINDS_OF_CAMERAS % 2])
