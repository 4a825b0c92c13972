"""Thin networks of LPIPS with random weights."""

import numpy as np

# Of each convolution: place, channels, side, stride, padding, side of the maximum before it,
# whether its output is compared.
ALEX = [
    (0, 6, 11, 4, 2, 0, True),
    (3, 5, 5, 1, 2, 3, True),
    (6, 7, 3, 1, 1, 3, True),
    (8, 4, 3, 1, 1, 0, True),
    (10, 4, 3, 1, 1, 0, True),
]
VGG = [
    (0, 3, 3, 1, 1, 0, False),
    (2, 4, 3, 1, 1, 0, True),
    (5, 4, 3, 1, 1, 2, False),
    (7, 5, 3, 1, 1, 0, True),
    (10, 5, 3, 1, 1, 2, False),
    (12, 3, 3, 1, 1, 0, False),
    (14, 6, 3, 1, 1, 0, True),
    (17, 4, 3, 1, 1, 2, False),
    (19, 4, 3, 1, 1, 0, False),
    (21, 5, 3, 1, 1, 0, True),
    (24, 4, 3, 1, 1, 2, False),
    (26, 3, 3, 1, 1, 0, False),
    (28, 5, 3, 1, 1, 0, True),
]
NETWORKS = {"AlexNet": ALEX, "VGG-16": VGG}


def states_of(layers, seed=0):
    """Trunk and heads as torch names them."""
    rng = np.random.default_rng(seed)
    trunk = {}
    heads = {}
    before = 3
    for place, channels, side, *_, is_compared in layers:
        shape = (channels, before, side, side)
        spread = (2 / np.prod(shape[1:])) ** 0.5
        trunk[f"features.{place}.weight"] = rng.normal(0, spread, shape).astype(np.float32)
        trunk[f"features.{place}.bias"] = rng.normal(0, 0.1, channels).astype(np.float32)
        before = channels
        if is_compared:
            head = rng.uniform(0, 1, (1, channels, 1, 1)).astype(np.float32)
            heads[f"lin{len(heads)}.model.1.weight"] = head
    return trunk, heads
