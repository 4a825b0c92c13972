"""Textures of the generated town: every level shows the same picture, coarser."""

import numpy as np

from cosurfgs_jax.data.town.texture import make_texture, pack

SIZE = 64
TEXEL = 0.1  # m


def test_a_ramp_is_the_same_at_every_level():
    columns, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    red, green = columns / SIZE, rows / SIZE
    texture = make_texture(pack([red, green, np.full_like(red, 0.5)]), TEXEL, 4)
    assert [level.shape for level in texture.levels] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    random = np.random.default_rng(0)
    u, v = random.uniform(8, SIZE - 8, (2, 500)).astype(np.float32)
    for pixel in (0.05, 0.16, 0.35, 0.7):  # one of each level
        size = np.full(len(u), pixel, np.float32)
        shown = texture.sample(u, v, size)
        for channel, expected in zip(shown, (u / SIZE, v / SIZE, 0.5 + 0 * u), strict=True):
            np.testing.assert_allclose(channel, 255 * expected, atol=1.5)
    mixed = texture.sample(u, v, random.choice([0.05, 0.16, 0.35, 0.7], len(u)))
    np.testing.assert_allclose(mixed[0], 255 * u / SIZE, atol=1.5)


def test_a_small_sample_sees_what_a_large_one_averages():
    checkers = (np.indices((SIZE, SIZE)).sum(axis=0) % 2).astype(float)
    texture = make_texture(pack([checkers] * 3), TEXEL, 2)
    u = np.arange(10, 30, dtype=np.float32) + 0.5
    v = np.full_like(u, 20.5)
    sharp, blurred = (texture.sample(u, v, np.full_like(u, pixel))[0] for pixel in (0.05, 0.2))
    np.testing.assert_array_equal(np.sort(sharp), np.repeat([0.0, 255.0], 10))
    np.testing.assert_allclose(blurred, 127.5, atol=1)
