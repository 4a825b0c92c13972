"""The generated town against slow, independent geometry."""

import dataclasses
import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
from PIL import Image
from scenes import SMALL, TINY, town_folder, town_scene

from cosurfgs_jax.data.town import dataset, exact_mesh, sfm
from cosurfgs_jax.errors import InputError

PIXEL_M = 0.6  # on the ground, in SMALL


@pytest.fixture(scope="module")
def scene():
    return town_scene()


@pytest.fixture(scope="module")
def maps(scene):
    """Depth f32[V,H,W] and normals f32[V,H,W,3] as written."""
    views = [load_maps(scene.ground_truth.depth_path(view)) for view in range(scene.num_views)]
    return np.stack([depth for depth, _ in views]), np.stack([normal for _, normal in views])


def load_maps(path):
    with np.load(path) as file:
        return file["depth"], file["normal"]


@pytest.fixture(scope="module")
def built():
    """The town itself: renderer, plan and mesh in the local frame."""
    renderer, town, reach = dataset._build(SMALL, 1)
    return renderer, town, exact_mesh.build_mesh(town, renderer.flight, reach)


def rays_of(scene, view, rows, columns):
    """Camera centre f64[3] and rays f64[n,3] with camera z 1 through pixel centres,
    dataset frame.
    """
    pose = scene.views.camera_from_dataset[view]
    intrinsics = scene.views.intrinsics[view]
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1)
    return -pose[:3, :3].T @ pose[:3, 3], pixels @ np.linalg.inv(intrinsics).T @ pose[:3, :3]


def surface_of(scene, depth, view):
    """Surface point f64[H,W,3] of every pixel, dataset frame."""
    rows, columns = (part.ravel() for part in np.indices(depth[view].shape))
    center, rays = rays_of(scene, view, rows, columns)
    return (center + depth[view].reshape(-1, 1) * rays).reshape(*depth[view].shape, 3)


def project(scene, view, points):
    """Pixels f64[n,2] and camera z f64[n]."""
    pose = scene.views.camera_from_dataset[view]
    camera = points @ pose[:3, :3].T + pose[:3, 3]
    pixels = camera @ scene.views.intrinsics[view].T
    return pixels[:, :2] / pixels[:, 2:], camera[:, 2]


def random_pixels(rng, shape, count):
    return rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)


def cut_by_hand(town, hulls, center, ray):
    """Ray factor of the first hit: slabs of convex hulls, and a root finder for the ground."""

    def above(factor):
        point = center + factor * ray
        waves = town.terrain.wave_xy @ point[:2] + town.terrain.phases
        return point[2] - town.terrain.amplitudes @ np.sin(waves)

    first = scipy.optimize.brentq(above, 1.0, 400.0, xtol=1e-10)
    for equations in hulls:
        outside = equations[:, :3] @ center + equations[:, 3]
        rate = equations[:, :3] @ ray
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = -outside / rate
        enter = np.max(factors[rate < 0], initial=0.0)
        leave = np.min(factors[rate > 0], initial=np.inf)
        if enter < leave and not np.any((rate == 0) & (outside > 0)):
            first = min(first, enter)
    return first


def test_depth_agrees_with_an_independent_intersector(scene, maps, built):
    town = built[1]
    hulls = [scipy.spatial.ConvexHull(solid.vertices).equations for solid in town.solids]
    rng = np.random.default_rng(0)
    for view in (0, 5, 10, 11):
        rows, columns = random_pixels(rng, maps[0][view].shape, 60)
        center, rays = rays_of(scene, view, rows, columns)
        expected = [cut_by_hand(town, hulls, center - dataset.ORIGIN_M, ray) for ray in rays]
        np.testing.assert_allclose(maps[0][view][rows, columns], expected, rtol=0, atol=2e-5)


def test_depth_agrees_with_the_mesh(scene, maps):
    truth = scene.ground_truth
    corners = truth.mesh_vertices[truth.mesh_triangles]
    rng = np.random.default_rng(1)
    for view in (2, 10):
        rows, columns = random_pixels(rng, maps[0][view].shape, 40)
        center, rays = rays_of(scene, view, rows, columns)
        hits = np.array([_first_triangle(center, ray, corners) for ray in rays])
        assert np.isfinite(hits).all()
        # The ground's triangles may be off by 5e-5 of the town's side in height, at most twice that
        # along a ray.
        np.testing.assert_allclose(
            maps[0][view][rows, columns], hits, rtol=0, atol=1e-4 * SMALL.size_m
        )


def _first_triangle(center, ray, corners):
    first = corners[:, 1] - corners[:, 0]
    second = corners[:, 2] - corners[:, 0]
    across = np.cross(ray, second)
    volume = np.einsum("ij,ij->i", first, across)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = center - corners[:, 0]
        u = np.einsum("ij,ij->i", offset, across) / volume
        turned = np.cross(offset, first)
        v = turned @ ray / volume
        factor = np.einsum("ij,ij->i", second, turned) / volume
    # Seen from outside only: then first x second points against the ray.
    is_hit = (volume > 1e-12) & (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (factor > 0)
    return factor[is_hit].min(initial=np.inf)


def test_views_agree_about_the_surface(scene, maps):
    depth, normal = maps
    points = surface_of(scene, depth, 1)
    shared = 0
    for other in (0, 2, 5):
        pixels, z = project(scene, other, points.reshape(-1, 3))
        is_inside = np.all((pixels > 0) & (pixels < (SMALL.width, SMALL.height)), axis=1)
        column, row = pixels[is_inside].astype(int).T
        surface = surface_of(scene, depth, other)[row, column]
        # Distance to the tangent plane at the other view's pixel, positive behind the surface.
        behind = -np.einsum(
            "ij,ij->i", points.reshape(-1, 3)[is_inside] - surface, normal[other][row, column]
        )
        is_close = np.abs(z[is_inside] - depth[other][row, column]) < 1.0
        assert np.median(np.abs(behind[is_close])) < 2e-3
        # Nothing that one view sees floats in front of what the other sees, except beside edges
        # within a pixel.
        assert np.mean(z[is_inside] < depth[other][row, column] - 2.0) < 0.02
        shared += is_close.sum()
    assert shared > 10_000


def test_normals_agree_with_differences_of_depth(scene, maps):
    depth, normal = maps
    for view in (3, 11):
        points = surface_of(scene, depth, view)
        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        measured = np.cross(down, across)
        measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
        stack = [
            normal[view][1 + i : SMALL.height - 1 + i, 1 + j : SMALL.width - 1 + j]
            for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        is_smooth = np.min([np.sum(stack[0] * other, axis=-1) for other in stack], axis=0) > np.cos(
            np.radians(2)
        )
        heights = [
            points[1 + i : SMALL.height - 1 + i, 1 + j : SMALL.width - 1 + j]
            for i, j in ((1, 0), (0, 1), (0, 0))
        ]
        is_smooth &= (
            np.max([np.abs(np.sum((part - heights[2]) * stack[0], -1)) for part in heights], axis=0)
            < 0.02
        )
        cosine = np.sum(measured * stack[0], axis=-1)[is_smooth]
        assert is_smooth.mean() > 0.5
        assert np.degrees(np.arccos(np.clip(np.quantile(cosine, 0.02), -1, 1))) < 1.5
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=2e-4)


def test_normals_face_the_camera(scene, maps):
    for view in range(scene.num_views):
        rows, columns = (part.ravel() for part in np.indices(maps[0][view].shape))
        _, rays = rays_of(scene, view, rows, columns)
        assert np.max(np.sum(maps[1][view].reshape(-1, 3) * rays, axis=1)) < 1e-3


def test_mesh_has_no_hidden_surface(built):
    _, town, mesh = built
    middles = mesh.vertices[mesh.triangles].mean(axis=1)
    tree = scipy.spatial.cKDTree(middles[:, :2])
    for solid in town.solids:
        middle = solid.footprint.mean(0)
        near = middles[
            tree.query_ball_point(middle, np.linalg.norm(solid.footprint - middle, axis=1).max())
        ]
        depth = (near @ solid.planes[:, :3].T + solid.planes[:, 3]).max(axis=1)
        assert depth.min() > -1e-6, f"a triangle lies {-depth.min()} m inside a {solid.kind}"
    is_wall = mesh.faces != exact_mesh.GROUND
    heights = town.terrain.heights(middles[is_wall, 0], middles[is_wall, 1])
    assert np.min(middles[is_wall, 2] - heights) > -5e-5 * town.size


@pytest.mark.parametrize("slope_deg", [30.0, 70.0])
def test_embankments_stand_in_the_place_of_houses_and_have_the_slope_asked_for(slope_deg):
    settings = dataclasses.replace(SMALL, embankment_deg=slope_deg)
    renderer, town, reach = dataset._build(settings, 1)
    mesh = exact_mesh.build_mesh(town, renderer.flight, reach)
    assert len(town.solids) > 3
    normals = np.concatenate([solid.planes[:, :3] for solid in town.solids])
    sides = normals.reshape(len(town.solids), 9, 3)[:, 4:8, 2]
    np.testing.assert_allclose(sides, np.cos(np.radians(slope_deg)), atol=1e-9)
    corners = mesh.vertices[mesh.triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(across, axis=1) / 2
    steepness = np.degrees(np.arccos(across[:, 2] / np.maximum(2 * areas, 1e-12)))
    is_side = (mesh.faces >= 0) & (np.abs(steepness - slope_deg) < 0.01)
    is_foot = (mesh.faces >= 0) & (steepness > 89.9)
    assert areas[is_side].sum() > areas[is_foot].sum()


def test_mesh_is_close_to_the_hills_and_turned_outwards(built):
    renderer, town, mesh = built
    is_ground = mesh.faces == exact_mesh.GROUND
    corners = mesh.vertices[mesh.triangles]
    fractions = np.random.default_rng(2).dirichlet(np.ones(3), len(corners))
    inside = np.einsum("nk,nkd->nd", fractions, corners)[is_ground]
    assert (
        np.max(np.abs(inside[:, 2] - town.terrain.heights(inside[:, 0], inside[:, 1])))
        < 5e-5 * town.size
    )
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.all(normals[is_ground, 2] > 0)
    outwards = renderer.faces.planes[mesh.faces[~is_ground], :3]
    assert np.all(np.sum(normals[~is_ground] * outwards, axis=1) > 0)


def test_true_points_lie_on_the_surface_and_are_seen_twice(scene, maps):
    truth = scene.ground_truth
    rng = np.random.default_rng(3)
    chosen = rng.choice(len(truth.points), 2000, replace=False)
    points = truth.points[chosen]
    normals = truth.normals[chosen]
    times_seen = np.zeros(len(points), int)
    for view in range(scene.num_views):
        pixels, z = project(scene, view, points)
        is_inside = np.flatnonzero(
            np.all((pixels > 0) & (pixels < (SMALL.width, SMALL.height)), axis=1) & (z > 0)
        )
        column, row = pixels[is_inside].astype(int).T
        surface = surface_of(scene, maps[0], view)[row, column]
        offset = np.sum((points[is_inside] - surface) * maps[1][view][row, column], axis=1)
        times_seen[is_inside[np.abs(offset) < 0.02]] += 1
    assert times_seen.min() >= 2
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert len(truth.points) > 10_000
    assert np.linalg.norm(truth.points.mean(0) - dataset.ORIGIN_M) < 20


def test_sparse_points_are_near_the_surface(scene):
    truth = scene.ground_truth
    distances, nearest = scipy.spatial.cKDTree(truth.points).query(scene.cloud.points)
    offset = np.abs(
        np.sum((scene.cloud.points - truth.points[nearest]) * truth.normals[nearest], axis=1)
    )
    offset = offset[distances < 2]  # farther ones have no close true point to compare with
    assert len(scene.cloud.points) == 1800 and len(offset) > 1500
    # 0.3 pixels in the picture are 0.2 m on the ground, times the ratio of distance to baseline in
    # depth.
    assert 0.02 < np.median(offset) < 0.35
    assert np.quantile(offset, 0.99) < 3 * PIXEL_M


def test_tracks_see_their_points(scene, maps):
    owner = np.repeat(np.arange(len(scene.cloud.points)), np.diff(scene.cloud.track_offsets))
    assert np.diff(scene.cloud.track_offsets).min() >= 3
    for view in range(scene.num_views):
        seen = owner[scene.cloud.track_views == view]
        assert len(seen) > 100
        pixels, z = project(scene, view, scene.cloud.points[seen])
        column, row = np.clip(pixels.astype(int), 0, (SMALL.width - 1, SMALL.height - 1)).T
        surface = surface_of(scene, maps[0], view)[row, column]
        offset = np.sum((scene.cloud.points[seen] - surface) * maps[1][view][row, column], axis=1)
        # Beside edges, the noise of a pixel or two may move a point in front of another surface.
        assert np.mean(np.abs(offset) < 3 * PIXEL_M) > 0.93
        assert np.all((pixels > -4) & (pixels < np.array([SMALL.width, SMALL.height]) + 4))


def test_observations_are_noisy_by_what_is_stated(built):
    renderer, town, mesh = built
    points, normals = exact_mesh.sample_surface(
        mesh, town, renderer.faces.planes, 2.0, (100, 20_000), 0
    )
    view = renderer.render(4)
    image = np.zeros((SMALL.height, SMALL.width, 3), np.uint8)
    observed = sfm.observe(renderer.flight, 4, view, image, points, normals, seed=0)
    seen, exact = sfm.visible_points(renderer.flight, 4, view, points, normals, min_cosine=0.2)
    exact = dict(zip(seen.tolist(), exact, strict=True))
    residual = observed.pixels - np.array([exact[number] for number in observed.numbers.tolist()])
    assert 0.45 < len(observed.numbers) / len(seen) < 0.62
    assert abs(residual.std() - sfm.NOISE_PX) < 0.03 and abs(residual.mean()) < 0.03


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 8), (6, 11)])
def test_photographs_of_one_place_match_to_a_fraction_of_a_pixel(scene, maps, first, second):
    """Warped by the true depth, one photograph explains another: the texture is rich, hardly
    aliased, and in its place.

    Views 1 and 8 head opposite ways, so that a shift of all pictures against their geometry would
    show twice."""
    pictures = [
        np.asarray(Image.open(scene.image_paths[view]), np.float64).mean(-1)
        for view in (first, second)
    ]
    points = surface_of(scene, maps[0], first).reshape(-1, 3)
    pixels, z = project(scene, second, points)
    is_inside = np.all((pixels > 2) & (pixels < (SMALL.width - 3, SMALL.height - 3)), axis=1)
    column, row = pixels.astype(int).clip(0, (SMALL.width - 1, SMALL.height - 1)).T
    is_inside &= np.abs(z - maps[0][second][row, column]) < 0.3
    assert is_inside.sum() > 2500
    there = pictures[0].ravel()[is_inside]

    def likeness(shift):
        return np.corrcoef(_bilinear(pictures[1], pixels[is_inside] + shift), there)[0, 1]

    assert likeness((0, 0)) > 0.85
    for shift in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)):
        assert likeness(shift) < likeness((0, 0)), shift


def _bilinear(picture, pixels):
    at = pixels - 0.5
    corner = at.astype(int)
    weight = at % 1
    return sum(
        picture[corner[:, 1] + j, corner[:, 0] + i]
        * np.abs(1 - i - weight[:, 0])
        * np.abs(1 - j - weight[:, 1])
        for i in (0, 1) for j in (0, 1)
    )  # fmt: skip


def test_no_photograph_has_flat_areas(scene):
    for path in scene.image_paths:
        grey = np.asarray(Image.open(path), np.float64).mean(-1)
        windows = np.lib.stride_tricks.sliding_window_view(grey, (7, 7))
        assert np.quantile(windows.std(axis=(2, 3)), 0.01) > 2
        assert 60 < grey.mean() < 160 and np.mean(grey > 250) < 0.01


def test_split_and_names(scene):
    assert scene.image_names[0] == "DJI_0001.png" and scene.num_views == 12
    np.testing.assert_array_equal(scene.test_views, [0, 8])


def test_oblique_views_exist(scene):
    tilt = np.degrees(np.arccos(-scene.views.camera_from_dataset[:, 2, 2]))
    assert np.sum(tilt < 12) == 10 and np.all(tilt[10:] > 25)


def test_the_same_settings_give_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    dataset.make_town(TINY, tmp_path / "again")
    first = town_folder(TINY)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    again = sorted(
        str(p.relative_to(tmp_path / "again"))
        for p in (tmp_path / "again").rglob("*")
        if p.is_file()
    )
    assert names == again and len(names) == 3 + 2 + 1 + 2 * TINY.num_views
    _, different, broken = filecmp.cmpfiles(first, tmp_path / "again", names, shallow=False)
    assert not different and not broken


def test_another_seed_gives_another_town(tmp_path):
    dataset.make_town(dataclasses.replace(TINY, seed=1), tmp_path / "other")
    name = "ground_truth/mesh.ply"
    assert (tmp_path / "other" / name).read_bytes() != (town_folder(TINY) / name).read_bytes()


def test_exposure_changes_photographs_only(tmp_path):
    dataset.make_town(dataclasses.replace(TINY, exposure_jitter=1.0), tmp_path / "bright")
    plain = town_folder(TINY)
    names = [path.name for path in sorted((plain / "images").iterdir())]
    ratios = []
    for name in names:
        pair = [
            np.asarray(Image.open(root / "images" / name), np.float64)
            for root in (plain, tmp_path / "bright")
        ]
        ratios.append(pair[1].mean() / pair[0].mean())
        depth = f"ground_truth/depth/{Path(name).stem}.npz"
        assert (plain / depth).read_bytes() == (tmp_path / "bright" / depth).read_bytes()
    assert 0.2 < np.std(np.log2(ratios)) < 1.5


def test_a_second_call_does_nothing(monkeypatch):
    folder = town_folder(TINY)
    monkeypatch.setattr(dataset, "_write_dataset", None)
    dataset.make_town(TINY, folder)


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset.sfm, "write_colmap", fail)
    with pytest.raises(KeyboardInterrupt):
        dataset.make_town(TINY, tmp_path / "town")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files; choose another folder"):
        dataset.make_town(TINY, tmp_path)
    with pytest.raises(InputError, match="delete it or choose another folder"):
        dataset.make_town(dataclasses.replace(TINY, seed=5), town_folder(TINY))
    (tmp_path / "generated.json").write_text('{"a":' * 80_000)
    with pytest.raises(InputError, match="other files; choose another folder"):
        dataset.make_town(TINY, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    dataset.make_town(TINY, tmp_path)
    assert json.loads((tmp_path / "generated.json").read_text())["num_views"] == TINY.num_views


@pytest.mark.parametrize(("width", "height", "size"), [(33, 47, 30.0), (64, 32, 130.0)])
def test_odd_sizes(tmp_path, width, height, size):
    settings = dataclasses.replace(TINY, num_views=4, width=width, height=height, size_m=size)
    dataset.make_town(settings, tmp_path / "town")
    depth, normal = load_maps(tmp_path / "town/ground_truth/depth/DJI_0001.npz")
    assert depth.shape == (height, width) and normal.shape == (height, width, 3)
    assert np.isfinite(depth).all() and 40 < depth.min() < depth.max() < 200


def test_model_opens_in_colmap():
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(town_folder() / "sparse" / "0"))
    assert model.num_images() == 12 and model.num_points3D() == 1800
    stored = model.compute_mean_reprojection_error()
    model.update_point_3d_errors()
    assert 0.2 < stored < 0.4 and model.compute_mean_reprojection_error() == pytest.approx(
        stored, rel=1e-6
    )
