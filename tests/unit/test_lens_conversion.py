"""Which lens model poses of other programs are given."""

from posed_scene import HEIGHT, WIDTH

from cosurfgs_jax.formats.posed_photos import BrownLens
from cosurfgs_jax.sfm import lens_conversion


def test_lens_models_are_chosen_by_what_they_need():
    bare = BrownLens((HEIGHT, WIDTH), (900.0, 900.0), (500.0, 375.0))
    assert not any([*bare.radial, *bare.tangential, bare.skew, bare.is_fisheye])
    lens = BrownLens((HEIGHT, WIDTH), (900.0, 900.0), (500.0, 375.0), (0.1, 0.0, 0.0, 0.0))
    assert lens_conversion.to_lens(lens, HEIGHT, WIDTH, "")[0].model == "OPENCV"
    more = lens._replace(radial=(0.1, 0.0, 0.01, 0.0))
    assert lens_conversion.to_lens(more, HEIGHT, WIDTH, "")[0].model == "FULL_OPENCV"
