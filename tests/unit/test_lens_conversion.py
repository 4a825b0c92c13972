"""Which lens model poses of other programs are given."""

import numpy as np
from posed_scene import HEIGHT, WIDTH

from cosurfgs_jax.formats.posed_photos import BrownLens
from cosurfgs_jax.geometry.distortion import pixels_from_normalised
from cosurfgs_jax.sfm import lens_conversion


def test_lens_models_are_chosen_by_what_they_need():
    bare = BrownLens((HEIGHT, WIDTH), (900.0, 900.0), (500.0, 375.0))
    assert not any([*bare.radial, *bare.tangential, bare.skew, bare.is_fisheye])
    lens = BrownLens((HEIGHT, WIDTH), (900.0, 900.0), (500.0, 375.0), (0.1, 0.0, 0.0, 0.0))
    assert lens_conversion.to_lens(lens, HEIGHT, WIDTH, "")[0].model == "OPENCV"
    more = lens._replace(radial=(0.1, 0.0, 0.01, 0.0))
    assert lens_conversion.to_lens(more, HEIGHT, WIDTH, "")[0].model == "FULL_OPENCV"


def test_a_lens_without_a_model_is_followed_where_its_picture_is():
    """A fourth radial coefficient has none: FULL_OPENCV is fitted to it, up to the corners."""
    lens = BrownLens((HEIGHT, WIDTH), (900.0, 900.0), (500.0, 375.0), (0.1, -0.05, 0.01, 0.02))
    fitted, error = lens_conversion.to_lens(lens, HEIGHT, WIDTH, "")
    assert fitted.model == "FULL_OPENCV" and error < lens_conversion.MAX_ERROR_PX
    columns = np.linspace(0, WIDTH, 7)
    rows = np.linspace(0, HEIGHT, 5)
    pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    rays = (pixels - [500.0, 375.0]) / 900.0
    radius = (rays**2).sum(axis=1, keepdims=True)
    factor = 1 + 0.1 * radius - 0.05 * radius**2 + 0.01 * radius**3 + 0.02 * radius**4
    expected = rays * factor * 900.0 + [500.0, 375.0]
    inside = ((expected > 0) & (expected < [WIDTH, HEIGHT])).all(axis=1)
    got = pixels_from_normalised(fitted, rays)
    np.testing.assert_allclose(got[inside], expected[inside], atol=error + 1e-3)
