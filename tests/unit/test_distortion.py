"""Lens models against COLMAP's, their inverse, and the pinhole image that replaces a
distorted one.
"""

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import distortion, lens_models

SIZE = (480, 640)
PARAMS = {
    "SIMPLE_PINHOLE": [500, 320, 240],
    "PINHOLE": [500, 510, 330, 235],
    "SIMPLE_RADIAL": [500, 320, 240, -0.1],
    "RADIAL": [500, 320, 240, -0.1, 0.02],
    "OPENCV": [500, 510, 330, 235, -0.1, 0.02, 0.003, -0.002],
    "FULL_OPENCV": [500, 510, 330, 235, 0.1, 0.02, 0.003, -0.002, 0.01, 0.15, 0.03, 0.01],
    "FOV": [500, 510, 330, 235, 0.9],
    "SIMPLE_DIVISION": [500, 320, 240, -0.2],
    "DIVISION": [500, 510, 330, 235, 0.1],
    "EUCM": [500, 510, 330, 235, 0.6, 1.1],
    "SIMPLE_FISHEYE": [300, 320, 240],
    "FISHEYE": [300, 310, 330, 235],
    "SIMPLE_RADIAL_FISHEYE": [300, 320, 240, 0.03],
    "RADIAL_FISHEYE": [300, 320, 240, 0.03, -0.01],
    "OPENCV_FISHEYE": [300, 310, 330, 235, 0.03, -0.01, 0.004, -0.001],
    "THIN_PRISM_FISHEYE": [300, 310, 330, 235, 0.03, -0.01, 0.003, -0.002, 0.004, -0.001, 0.002,
    -0.003],
    "RAD_TAN_THIN_PRISM_FISHEYE": [300, 310, 330, 235, 0.03, -0.01, 0.003, -0.002, 0.004, -0.001,
    0.002, -0.003,
                                   0.002, 0.001, -0.001, 0.002],
}  # fmt: skip


def _lens(model):
    return distortion.lens_from_params(model, *SIZE, PARAMS[model])


def _rays(count=500, seed=0):
    return np.random.default_rng(seed).uniform(-0.7, 0.7, (count, 2))


def test_the_list_here_is_complete():
    assert set(PARAMS) == set(lens_models.MODELS)


@pytest.mark.parametrize("model", PARAMS)
def test_agrees_with_colmap(model):
    pycolmap = pytest.importorskip("pycolmap")
    camera = pycolmap.Camera.create_from_model_name(1, model, 500.0, SIZE[1], SIZE[0])
    camera.params = PARAMS[model]
    rays = _rays()
    pixels = camera.img_from_cam(np.concatenate([rays, np.ones((len(rays), 1))], axis=1))
    np.testing.assert_allclose(
        distortion.pixels_from_normalised(_lens(model), rays), pixels, rtol=0, atol=1e-9
    )
    # COLMAP's own inverse stops at about 1e-10 of a focal length.
    back = distortion.normalised_from_pixels(_lens(model), pixels)
    np.testing.assert_allclose(back, camera.cam_from_img(pixels), rtol=0, atol=1e-8)


def test_every_model_of_colmap_is_known():
    pycolmap = pytest.importorskip("pycolmap")
    for model in pycolmap.CameraModelId.__members__:
        if model == "EQUIRECTANGULAR":
            with pytest.raises(InputError, match="panorama"):
                lens_models.num_params(model)
        elif model != "INVALID":
            camera = pycolmap.Camera.create_from_model_name(1, model, 500.0, 640, 480)
            assert lens_models.num_params(model) == len(camera.params)


@pytest.mark.parametrize("model", PARAMS)
def test_undistort_inverts_distort(model):
    rays = np.concatenate([_rays(), [[0.0, 0.0], [1e-9, 0.0], [0.9, -0.8]]])
    np.testing.assert_allclose(
        distortion.undistort(_lens(model), distortion.distort(_lens(model), rays)), rays, atol=1e-10
    )


def test_undistort_of_any_shape_and_of_points_that_no_ray_reaches():
    lens = distortion.lens_from_params("SIMPLE_RADIAL", *SIZE, [500, 320, 240, -0.5])
    # r - r^3 / 2 has its maximum of 0.544 at r = 0.816.
    points = np.array([[[0.54, 0.0]], [[0.55, 0.0]], [[0.0, 0.7]]])
    back = distortion.undistort(lens, points)
    assert back.shape == points.shape
    assert np.isnan(back[:, 0]).all(axis=-1).tolist() == [False, True, True]
    np.testing.assert_allclose(distortion.distort(lens, back[0]), points[0], atol=1e-10)


@pytest.mark.parametrize("model", PARAMS)
def test_the_pinhole_image_has_no_border_and_wastes_little(model):
    lens = _lens(model)
    pinhole = distortion.undistorted_pinhole(lens)
    positions = distortion.source_pixels(lens, pinhole)
    assert pinhole.model == "PINHOLE" and pinhole.focal_px == lens.focal_px
    assert positions.shape == (pinhole.height, pinhole.width, 2) and positions.dtype == np.float32
    assert positions.min() > 0.479
    assert (
        positions[..., 0].max() < lens.width - 0.479
        and positions[..., 1].max() < lens.height - 0.479
    )
    ratio = np.array([pinhole.height / lens.height, pinhole.width / lens.width])
    assert np.all(ratio <= distortion.MAX_GROWTH) and np.all(ratio > 0.9)
    # The rectangle touches the photograph's border on all sides, or is as large as is allowed.
    reached = [positions[..., axis].min() < 2 for axis in (0, 1)]
    reached += [
        positions[..., axis].max() > size - 2 for axis, size in ((0, lens.width), (1, lens.height))
    ]
    assert all(reached) or ratio.max() > distortion.MAX_GROWTH - 0.01


def test_size_and_shift_of_a_symmetric_lens():
    pinhole = distortion.undistorted_pinhole(_lens("SIMPLE_RADIAL"))
    assert pinhole.principal_px == (pinhole.width / 2, pinhole.height / 2)
    assert distortion.undistorted_pinhole(_lens("SIMPLE_PINHOLE")) == distortion.lens_from_params(
        "PINHOLE", *SIZE, [500, 500, 320, 240]
    )


def test_pixel_centres_are_at_one_half():
    pinhole = _lens("PINHOLE")
    positions = distortion.source_pixels(pinhole, pinhole)
    np.testing.assert_allclose(positions[0, 0], [0.5, 0.5], atol=1e-4)
    np.testing.assert_allclose(positions[479, 639], [639.5, 479.5], atol=1e-4)


@pytest.mark.parametrize("coefficients", [[-0.5, 0], [-0.3, -0.2], [0, -0.5], [1, 1]])
def test_folded_polynomials_are_cropped(coefficients):
    lens = distortion.lens_from_params("RADIAL", *SIZE, [500, 320, 240, *coefficients])
    pinhole = distortion.undistorted_pinhole(lens)
    positions = distortion.source_pixels(lens, pinhole)
    # The right way round: to the right and down in the one is so in the other.
    assert np.all(np.diff(positions[..., 0], axis=1) > 0) and np.all(
        np.diff(positions[..., 1], axis=0) > 0
    )
    assert positions.min() > 0.479 and np.all(positions.max((0, 1)) < np.array([640, 480]) - 0.479)


def test_hopeless_calibration_is_an_error():
    lens = distortion.lens_from_params("RADIAL", *SIZE, [500, 320, 240, -20.0, 0.0])
    with pytest.raises(
        InputError, match=r"camera model RADIAL: expected distortion that leaves a usable"
    ):
        distortion.undistorted_pinhole(lens)


def test_is_pinhole_up_to_a_hundredth_of_a_pixel():
    assert distortion.is_pinhole(_lens("PINHOLE"))
    assert distortion.is_pinhole(
        distortion.lens_from_params("OPENCV", *SIZE, [500, 500, 320, 240, 0, 0, 0, 0])
    )
    assert not distortion.is_pinhole(_lens("SIMPLE_FISHEYE"))
    # The corner is at r = 0.8: k r^3 f = 256 k pixels along the diagonal, 4/5 of it in x.
    for k, expected in ((4.5e-5, True), (5.5e-5, False)):
        assert (
            distortion.is_pinhole(
                distortion.lens_from_params("SIMPLE_RADIAL", *SIZE, [500, 320, 240, k])
            )
            is expected
        )


def test_resized_keeps_rays():
    lens = _lens("OPENCV")
    small = lens.resized(120, 213, 1 / 4, 1 / 3)
    rays = _rays(20)
    np.testing.assert_allclose(
        distortion.pixels_from_normalised(small, rays),
        distortion.pixels_from_normalised(lens, rays) / [3, 4],
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("PINHOLE", [500, 500, 320], r"PINHOLE: expected 4 parameters, got 3"),
        ("PINHOLE", [0, 500, 320, 240], r"positive focal length"),
        ("PINHOLE", [np.inf, 500, 320, 240], r"finite"),
        ("EQUIRECTANGULAR", [640, 480], r"panorama"),
        ("LOOKING_GLASS", [], r"expected one of SIMPLE_PINHOLE"),
    ],
)
def test_lenses_that_make_no_sense(model, params, message):
    with pytest.raises(InputError, match=message):
        distortion.lens_from_params(model, *SIZE, params)


def test_models_have_as_many_parameters_as_in_colmap():
    expected = {
        "SIMPLE_PINHOLE": 3,
        "PINHOLE": 4,
        "SIMPLE_RADIAL": 4,
        "RADIAL": 5,
        "OPENCV": 8,
        "FULL_OPENCV": 12,
        "FOV": 5,
        "SIMPLE_DIVISION": 4,
        "DIVISION": 5,
        "EUCM": 6,
        "SIMPLE_FISHEYE": 3,
        "FISHEYE": 4,
        "SIMPLE_RADIAL_FISHEYE": 4,
        "RADIAL_FISHEYE": 5,
        "OPENCV_FISHEYE": 8,
        "THIN_PRISM_FISHEYE": 12,
        "RAD_TAN_THIN_PRISM_FISHEYE": 16,
    }
    assert {name: lens_models.num_params(name) for name in lens_models.MODELS} == expected
    fisheye = {name for name, model in lens_models.MODELS.items() if model.is_fisheye}
    assert fisheye == {name for name in expected if "FISHEYE" in name}
