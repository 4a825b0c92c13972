"""Scores against hand-computed values, an independent SSIM, and shapes whose distances
are known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.test_util import check_grads

from cosurfgs_jax import metrics
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.metrics import mesh_distance

ssim = jax.jit(metrics.ssim)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_psnr_of_a_constant_difference():
    a = jnp.full((5, 7, 3), 0.5)
    assert float(metrics.psnr(a, a + 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert np.isinf(float(metrics.psnr(a, a)))


def test_psnr_looks_only_at_kept_pixels():
    a = np.full((6, 6, 3), 0.5, np.float32)
    b = np.full((6, 6, 3), 0.6, np.float32)
    b[:3] = 1.0
    mask = np.zeros((6, 6), bool)
    mask[3:] = True
    assert float(metrics.psnr(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask))) == pytest.approx(
        20.0, abs=1e-4
    )


def ssim_by_scipy(a, b):
    """The same definition by another path: one two-dimensional window, in float64."""
    radius = np.arange(11) - 5
    window = np.exp(-(radius[:, None] ** 2 + radius[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x):
        return np.stack(
            [scipy.ndimage.correlate(x[..., c], window, mode="constant") for c in range(3)], axis=-1
        )

    a = a.astype(np.float64)
    b = b.astype(np.float64)
    ma = blur(a)
    mb = blur(b)
    va = blur(a * a) - ma**2
    vb = blur(b * b) - mb**2
    cov = blur(a * b) - ma * mb
    return (
        (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    ).mean()


@pytest.mark.parametrize("size", [(24, 31), (8, 40), (3, 3)])
def test_ssim_equals_an_independent_implementation(size):
    a = noise(*size, 3)
    b = np.clip(a + 0.2 * noise(*size, 3, seed=1), 0, 1).astype(np.float32)
    assert float(ssim(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(
        ssim_by_scipy(a, b), abs=2e-6
    )


def test_ssim_of_equal_images_is_one_and_falls_with_noise():
    a = noise(20, 20, 3)
    values = [
        float(ssim(jnp.asarray(a), jnp.asarray(a + s * noise(20, 20, 3, seed=2))))
        for s in (0, 0.1, 0.4)
    ]
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values[0] > values[1] > values[2]


def test_ssim_gradient():
    with jax.enable_x64(True):
        a, b = (noise(9, 12, 3, seed=seed).astype(np.float64) for seed in (0, 1))
        check_grads(ssim, (a, b), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_masked_pixels_have_no_say_in_ssim():
    a = noise(24, 24, 3)
    b = noise(24, 24, 3, seed=1)
    mask = np.ones((24, 24), bool)
    mask[:, :10] = False
    first = float(ssim(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask)))
    a[:, :10] = 0.3
    assert float(ssim(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask))) == pytest.approx(
        first, abs=1e-6
    )
    a[:, 12:] = 0.3
    assert abs(float(ssim(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask))) - first) > 1e-3


def test_color_correct_undoes_a_quadratic_change():
    photo = 0.2 + 0.5 * noise(40, 50, 3)
    # The inverse of a square root is a square: the model class holds the answer exactly.
    render = np.sqrt(photo)
    fitted = metrics.color_correct(render, photo)
    assert np.abs(fitted - photo).max() < 1e-4
    assert np.abs(render - photo).max() > 0.05


def test_color_correct_leaves_out_saturated_and_masked_pixels():
    photo = 0.2 + 0.5 * noise(40, 50, 3)
    render = np.clip(photo * 0.8 + 0.1, 0, 1)
    photo[:10] = 1.0  # burnt out: would pull the fit up
    mask = np.ones((40, 50), bool)
    mask[30:] = False
    photo[30:] *= 0.3  # masked: would pull the fit down
    fitted = metrics.color_correct(render, photo, mask)
    assert np.abs(fitted - photo)[10:30].max() < 1e-4


def test_color_correct_fits_five_times():
    """Against the definition, one channel after the other: where much of a render is at the border
    of what is shown, the fits do not agree at once.
    """
    photo = noise(40, 50, 3)
    render = np.clip(1.6 * noise(40, 50, 3, seed=1) ** 2 + 0.3 * photo - 0.2, 0, 1)
    expected = render.reshape(-1, 3).astype(np.float64)
    wanted = photo.reshape(-1, 3).astype(np.float64)
    is_grey = np.abs(np.stack([expected, wanted]) - 0.5).max(axis=0) <= 0.5 - 0.5 / 255
    for _ in range(5):
        ones = np.column_stack([np.ones(len(expected)), expected])
        terms = np.stack([ones[:, i] * ones[:, j] for i in range(4) for j in range(i, 4)], axis=1)
        is_used = is_grey & (np.abs(expected - 0.5) <= 0.5 - 0.5 / 255)
        fits = [
            np.linalg.lstsq(terms[used], wanted[used, channel], rcond=None)[0]
            for channel, used in enumerate(is_used.T)
        ]
        expected = np.clip(terms @ np.stack(fits, axis=1), 0, 1)
    fitted = metrics.color_correct(render, photo).reshape(-1, 3)
    np.testing.assert_allclose(fitted, expected, rtol=0, atol=1e-4)


def test_color_correct_of_grey_and_of_black_images_stays_finite():
    grey = np.repeat(0.2 + 0.5 * noise(20, 20, 1), 3, axis=2)
    assert np.abs(metrics.color_correct(grey, grey * 0.9) - grey * 0.9).max() < 1e-3
    black = np.zeros((20, 20, 3), np.float32)
    assert np.array_equal(metrics.color_correct(black, grey), black)


def test_mesh_samples_lie_on_the_mesh_in_proportion_to_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 2], [8, 0, 2], [5, 1, 2.0]])
    triangles = np.array([[0, 1, 2], [3, 4, 5]])
    points, chosen, weights = metrics.sample_mesh(vertices, triangles, 4000, seed=3)
    assert (chosen == 1).sum() == pytest.approx(3000, abs=1)
    assert np.allclose(points[:, 2], np.where(chosen == 1, 2.0, 0.0))
    first = points[chosen == 0]
    assert (first >= 0).all() and (first[:, 0] + first[:, 1] <= 1 + 1e-12).all()
    assert np.allclose(first.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.02)
    assert np.allclose(weights.sum(axis=1), 1)
    again = metrics.sample_mesh(vertices, triangles, 4000, seed=3)[0]
    assert np.array_equal(points, again)
    with pytest.raises(InputError, match="area"):
        metrics.sample_mesh(vertices, np.array([[0, 0, 1]]), 10)


def square(size=10.0, height=0.0, num=81):
    x, y = np.meshgrid(np.linspace(0, size, num), np.linspace(0, size, num))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], axis=1)


def test_grid_downsample_keeps_one_mean_per_cell():
    points = np.array([[0.1, 0, 0], [0.3, 0, 0], [5, 5, 5.0]])
    assert np.allclose(metrics.grid_downsample(points, 1.0), [[0.2, 0, 0], [5, 5, 5]])


def test_scores_of_a_plane_at_a_known_distance():
    vertices = np.array([[0, 0, 0.2], [10, 0, 0.2], [10, 10, 0.2], [0, 10, 0.2]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    scores = metrics.surface_scores(
        (vertices, triangles), square(num=401), thresholds=(0.15, 0.25), num_samples=200_000
    )
    assert scores["accuracy"] == pytest.approx(0.2, abs=0.002)
    assert scores["completeness"] == pytest.approx(0.2, abs=0.002)
    assert [row["f1"] for row in scores["thresholds"]] == [0.0, pytest.approx(1.0, abs=1e-3)]
    assert scores["sampling"] == "200000 points by area, seed 0"


def test_distances_to_triangles_are_exact_inside_at_edges_and_at_corners():
    vertices = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 9], [0, 0, 9], [1, 0, 9.0]])
    triangles = np.array([[0, 1, 2], [3, 4, 5]])  # the second one has no area
    points = np.array(
        [[1, 1, 0.5], [1, 1, -0.5], [2, -3, 0], [3, 3, 0], [-3, -4, 0], [1, -3, 4], [1, 1, 0]]
    )
    expected = [0.5, 0.5, 3.0, np.sqrt(2), 5.0, 5.0, 0.0]
    assert metrics.distance_to_mesh(points, vertices, triangles) == pytest.approx(
        expected, abs=1e-12
    )
    flat = np.repeat(vertices[None, 3:], 2, axis=0)
    assert mesh_distance._distance_to_triangles(
        np.array([[0.5, 2, 9], [3, 0, 9.0]]), flat
    ) == pytest.approx([2, 2])


def test_distances_to_a_mesh_are_those_of_all_its_triangles():
    """At map coordinates, too, and whatever the order of the triangles is."""
    generator = np.random.default_rng(4)
    place = np.array([476_000.0, 5_429_000.0, 300.0])
    # Long and short triangles across each other: corners of the nearest one may be far away.
    corners = generator.normal(size=(60, 3, 3)) * generator.choice([0.1, 5.0], size=(60, 1, 1))
    corners += generator.normal(size=(60, 1, 3)) * 3 + place
    points = generator.normal(size=(200, 3)) * 4 + place
    unused = np.zeros((1, 3))  # by no triangle, and far away
    vertices = np.concatenate([unused, corners.reshape(-1, 3)])
    triangles = 1 + np.arange(3 * len(corners)).reshape(-1, 3)
    expected = np.min(
        [
            mesh_distance._distance_to_triangles(points, np.repeat(one[None], len(points), axis=0))
            for one in corners
        ],
        axis=0,
    )
    for order in (slice(None), generator.permutation(len(triangles))):
        distances, nearest = mesh_distance.nearest_on_mesh(points, vertices, triangles[order])
        assert distances == pytest.approx(expected, abs=1e-5)
        own = mesh_distance._distance_to_triangles(points, vertices[triangles[order][nearest]])
        assert (own == distances).all()
    with pytest.raises(InputError, match="expected triangles, got none"):
        mesh_distance.nearest_on_mesh(points, vertices, triangles[:0])
    nowhere = np.where(np.arange(len(points)) == 3, np.nan, points.T).T
    with pytest.raises(InputError, match="points: expected finite coordinates"):
        mesh_distance.nearest_on_mesh(nowhere, vertices, triangles)


def test_an_exact_mesh_takes_the_gaps_of_the_points_out_of_the_scores():
    vertices = np.array([[0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0.0]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    raised = (vertices + np.array([0, 0, 0.01]), triangles)
    sparse = square(num=11)  # one point per unit
    with_gaps = metrics.surface_scores(raised, sparse, thresholds=(0.1,), num_samples=20_000)
    exact = metrics.surface_scores(
        raised, sparse, truth_mesh=(vertices, triangles), thresholds=(0.1,), num_samples=20_000
    )
    assert (
        with_gaps["accuracy"] > 0.2
        and "finer than the ground truth" in with_gaps["thresholds"][0]["kind"]
    )
    assert exact["accuracy"] == pytest.approx(0.01) and exact["thresholds"][0]["precision"] == 1.0
    assert (
        exact["thresholds"][0]["kind"] == "given"
        and "to triangles of the ground truth" in exact["distances"]
    )
    assert exact["completeness"] == pytest.approx(0.01)  # whatever the number of samples


def test_missing_half_costs_recall_and_a_stray_sheet_costs_precision():
    truth = square()
    half = truth[truth[:, 0] <= 5]
    scores = metrics.surface_scores(half, truth, thresholds=(0.2,))
    assert scores["thresholds"][0]["precision"] == 1.0
    assert scores["thresholds"][0]["recall"] == pytest.approx(0.5, abs=0.03)
    both = np.concatenate([truth, square(height=0.4)])
    scores = metrics.surface_scores(both, truth, thresholds=(0.2,))
    assert scores["thresholds"][0]["precision"] == pytest.approx(0.5, abs=0.01)
    assert scores["thresholds"][0]["recall"] == 1.0
    f1 = scores["thresholds"][0]["f1"]
    assert f1 == pytest.approx(2 * 0.5 / 1.5, abs=0.01)


def test_default_thresholds_come_from_spacing_and_width():
    scores = metrics.surface_scores(square(), square(), unit="m")
    spacing = 10 / 80
    width = 10.0
    assert (
        "finer" in scores["thresholds"][1]["kind"]
        and "finer" not in scores["thresholds"][0]["kind"]
    )
    assert [row["tau"] for row in scores["thresholds"]] == pytest.approx(
        [1.5 * spacing, 0.001 * width, 0.0025 * width, 0.005 * width], rel=0.02
    )
    assert scores["unit"] == "m" and scores["truth_spacing"] == pytest.approx(spacing, rel=0.01)


def cameras_above(num=3):
    poses = np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (num, 1, 1))
    for i, pose in enumerate(poses):
        center = np.array([2.5, 2.5 + 0.1 * i, 5.0])
        pose[:3, 3] = -pose[:3, :3] @ center
    intrinsics = np.tile(np.array([[100.0, 0, 50], [0, 100.0, 50], [0, 0, 1]]), (num, 1, 1))
    return Views(poses, intrinsics, np.full((num, 2), 100))


def test_crop_to_what_cameras_saw():
    views = cameras_above()  # each sees a square of 5 x 5 on the ground
    region = metrics.SeenRegion(views)
    points = np.array([[2.5, 2.5, 0], [9.0, 9.0, 0], [2.5, 2.5, 7.0], [2.5, 0.05, 0]])
    # The last one is in the first image only; the third is behind the cameras.
    assert region.contains(points).tolist() == [True, False, False, False]
    truth = square(num=201)
    seen_half = truth[(truth[:, 0] <= 5) & (truth[:, 1] <= 5.2)]
    scores = metrics.surface_scores(seen_half, truth, thresholds=(0.1,), region=region)
    assert scores["thresholds"][0]["recall"] > 0.99
    assert "2 images" in scores["crop"]
    assert scores["sampling"] == f"{len(seen_half)} points as given"
    left = scores["num_surface_points"] / len(seen_half)
    assert left < 1 and scores["share_of_surface_cropped"] == pytest.approx(1 - left)
    assert scores["share_of_truth_cropped"] == pytest.approx(1 - (5 * 5.1) / 100, abs=0.02)


def test_hidden_ground_truth_does_not_count_but_a_hidden_surface_does():
    views = cameras_above()
    roof = np.full((100, 100), 4.0, np.float32)  # a flat roof at height 1 hides the ground
    region = metrics.SeenRegion(views, depth_of=lambda view: roof)
    inner = square(3.0, num=61) + np.array([1.0, 1.0, 0])
    truth = np.concatenate([inner + np.array([0, 0, 1.0]), inner])
    scores = metrics.surface_scores(
        inner + np.array([0, 0, 1.0]), truth, thresholds=(0.1,), region=region
    )
    assert scores["thresholds"][0]["recall"] == 1.0
    wrong = np.concatenate([inner + np.array([0, 0, 1.0]), inner + np.array([0, 0, 0.5])])
    scores = metrics.surface_scores(wrong, truth, thresholds=(0.1,), region=region)
    assert scores["thresholds"][0]["precision"] == pytest.approx(0.5, abs=0.01)


def test_points_hide_what_lies_behind_them_without_depth_maps():
    views = cameras_above()
    region = metrics.SeenRegion(views)
    roof = square(2.0, num=41) + np.array([1.5, 1.5, 1.0])
    wide = square(5.0, num=101)  # the ground, under the roof and around it
    truth = np.concatenate([roof, wide])
    is_seen = region.hidden_by(truth, 0.05).contains(truth)
    assert is_seen[: len(roof)].all()
    x = wide[:, 0] - 2.5
    y = wide[:, 1] - 2.55
    is_under = np.maximum(abs(x), abs(y)) < 1.0
    is_open = np.maximum(abs(x), abs(y)) > 1.6
    seen = is_seen[len(roof) :]
    assert not seen[is_under].any() and seen[is_open & (abs(x) < 2.4) & (abs(y) < 2.3)].all()
    shown = np.concatenate([roof, wide[~is_under]])
    scores = metrics.surface_scores(
        shown, truth, thresholds=(0.1,), region=region, is_hidden_by_truth=True
    )
    assert scores["thresholds"][0]["recall"] == 1.0 and "other ground truth hides" in scores["crop"]
    assert (
        metrics.surface_scores(shown, truth, thresholds=(0.1,), region=region)["thresholds"][0][
            "recall"
        ]
        < 0.9
    )


@pytest.mark.parametrize("change", [lambda p: p * 100, lambda p: p + np.array([1000.0, 0, 0])])
def test_wrong_unit_or_frame_is_refused(change):
    with pytest.raises(InputError, match="frame and unit"):
        metrics.surface_scores(square(), change(square()))


def test_nothing_in_view_is_refused():
    views = cameras_above()
    region = metrics.SeenRegion(views)
    far = square() + np.array([40.0, 40.0, 0])
    with pytest.raises(
        InputError, match="after the crop .* got 0 of the surface and 0 of ground truth"
    ):
        metrics.surface_scores(far, far, region=region)
