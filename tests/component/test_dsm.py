"""Height map and orthophoto of a known model: heights and colours at map coordinates, no seams, and
reasons are given.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import bare_scene

from cosurfgs_jax import Camera, Surfels, rasterize
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.spherical_harmonics import C0
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.settings import GeoSettings
from cosurfgs_jax.surface import dsm, geotiff, ground
from cosurfgs_jax.surface.mesh import Mesh

# Map coordinates: float32 has steps of half a metre there. Multiples of the pixel size, which is
# exact in binary.
ORIGIN = np.array([451_234.5, 5_212_345.25, 310.0])
PIXEL = 0.125
OFFSET = (1000.0, -2000.0, 50.0)
SCALE = 0.01  # world lengths per metre
SLOPE = np.array([0.1, 0.05])  # of the ground
ROOF = (20.0, 40.0, 20.0, 35.0, 12.0)  # from and to x, from and to y, height; metres from ORIGIN
HOLE = (55.0, 65.0, 10.0, 20.0)  # in the ground
LEFT_COLOR = (0.2, 0.6, 0.4)
RIGHT_COLOR = (0.7, 0.3, 0.1)
ROOF_COLOR = (0.9, 0.1, 0.2)
MAP_AXES = np.eye(3)
TILT = np.array(
    [[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]]
)  # rows east, north, up of a dataset that is no map


def is_within(x, y, box, margin=0.0):
    """Whether places are in a box that is wider by a margin."""
    return (
        (x > box[0] - margin)
        & (x < box[1] + margin)
        & (y > box[2] - margin)
        & (y < box[3] + margin)
    )


def grid_of_places(step, low, high_x, high_y):
    x, y = np.meshgrid(np.arange(low, high_x, step), np.arange(low, high_y, step))
    return x.ravel(), y.ravel()


def model(extra=()):
    """Sloping ground with a hole and two colours, a flat roof over it; world frame. `extra`:
    (place, radius) of floaters.
    """
    x, y = grid_of_places(0.5, -3.0, 83.0, 73.0)
    on_ground = ~is_within(x, y, HOLE)
    on_roof = is_within(x, y, ROOF)
    ground = np.stack([x, y, SLOPE[0] * x + SLOPE[1] * y], axis=1)[on_ground]
    roof = np.stack([x, y, np.full_like(x, ROOF[4])], axis=1)[on_roof]
    places = np.concatenate([ground, roof, *([place] for place, _ in extra)])
    normal = np.array([*-SLOPE, 1.0]) / np.linalg.norm([*SLOPE, 1.0])
    tilted = np.array(
        [1 + normal[2], -normal[1], normal[0], 0.0]
    )  # the rotation from z to the normal
    quats = np.tile([1.0, 0, 0, 0], (len(places), 1))
    quats[: len(ground)] = tilted / np.linalg.norm(tilted)
    scales = np.full((len(places), 2), 0.5)
    scales[len(ground) + len(roof) :] = np.array([radius for _, radius in extra]).reshape(-1, 1)
    colors = np.where(ground[:, :1] < 35, LEFT_COLOR, RIGHT_COLOR)
    colors = np.concatenate([colors, np.tile(ROOF_COLOR, (len(roof) + len(extra), 1))])
    return Surfels(
        means=jnp.asarray(SCALE * places, jnp.float32),
        quats=jnp.asarray(quats, jnp.float32),
        log_scales=jnp.asarray(np.log(SCALE * scales), jnp.float32),
        logit_opacities=jnp.full(len(places), 4.0),
        sh=jnp.asarray((colors - 0.5)[:, None] / C0, jnp.float32),
        alive=jnp.ones(len(places), bool),
    )


def sfm_points():
    """One a metre on what is seen from above, then those on the ground under the roof: metres from
    ORIGIN.
    """
    x, y = grid_of_places(1.0, 0.5, 80.0, 70.0)
    clear = ~is_within(x, y, ROOF, 2.0) | is_within(x, y, ROOF, -2.0)
    x = x[clear]
    y = y[clear]
    ground = SLOPE[0] * x + SLOPE[1] * y
    under = is_within(x, y, ROOF)
    seen = np.stack([x, y, np.where(under, ROOF[4], ground)], axis=1)
    return np.concatenate([seen, np.stack([x, y, ground], axis=1)[under]]), int(under.sum())


def views_of(pose, focal=300.0, size=(400, 500)):
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])
    return Views(pose[None], intrinsics[None], np.array([size]))


def scene_of(points, axes):
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1, -1]) @ axes
    pose[:3, 3] = -pose[:3, :3] @ ([40.0, 35.0, 60.0] @ axes + ORIGIN)
    return bare_scene(views_of(pose), points @ axes + ORIGIN, up=axes[2])


def frame_of(axes):
    return SceneFrame(SCALE, axes, -SCALE * axes @ ORIGIN)


def write(folder, surfels, points, axes=MAP_AXES, offset="", epsg=0, **more):
    settings = GeoSettings(pixel_size=PIXEL, offset=offset, epsg=epsg)
    return dsm.write_dsm(
        folder / "dsm.tif",
        folder / "orthophoto.tif",
        surfels,
        frame_of(axes),
        scene_of(points, axes),
        settings,
        **more,
    )


@pytest.fixture(scope="module")
def rasterio():
    return pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def written(rasterio, tmp_path_factory):
    """Files with offset and coordinate system, and what was said of them. A large disc floats 30 m
    up.
    """
    folder = tmp_path_factory.mktemp("dsm")
    done = []
    info = write(
        folder,
        model([((50.0, 40.0, 30.0), 6.0)]),
        sfm_points()[0],
        offset="1000, -2000, 50",
        epsg=32632,
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return folder, info


def sample(file, x, y, origin=None):
    """A file's values [n, bands] at metres from ORIGIN, found through its own transform."""
    from rasterio.transform import rowcol

    origin = ORIGIN + OFFSET if origin is None else origin
    rows, columns = rowcol(file.transform, x + origin[0], y + origin[1])
    return np.moveaxis(file.read(), 0, -1)[np.asarray(rows, int), np.asarray(columns, int)]


def center_places(step=7):
    """Centres of every `step`-th pixel, metres from ORIGIN."""
    x, y = np.meshgrid(
        np.arange(0.5 + PIXEL / 2, 79.5, step * PIXEL),
        np.arange(0.5 + PIXEL / 2, 69.5, step * PIXEL),
    )
    return x.ravel(), y.ravel()


def test_heights_are_exact_at_map_coordinates(rasterio, written):
    with rasterio.open(written[0] / "dsm.tif") as file:
        assert (file.crs.to_epsg(), file.dtypes, file.nodata, file.count) == (
            32632,
            ("float32",),
            geotiff.NODATA,
            1,
        )
        assert (file.width, file.height) == (632, 552) and file.block_shapes == [(512, 512)]
        assert file.transform[:6] == (
            PIXEL,
            0,
            ORIGIN[0] + OFFSET[0] + 0.5,
            0,
            -PIXEL,
            ORIGIN[1] + OFFSET[1] + 69.5,
        )
        assert (
            "x and y of the dataset" in file.tags()["AXES"]
            and file.tags()["AREA_OR_POINT"] == "Area"
        )
        x, y = center_places()
        heights = sample(file, x, y)[:, 0] - ORIGIN[2] - OFFSET[2]
    on_roof = is_within(x, y, ROOF, -2.5)
    on_ground = ~is_within(x, y, ROOF, 2.5) & ~is_within(x, y, HOLE, 2.5)
    in_hole = is_within(x, y, HOLE, -2.5)
    assert min(on_roof.sum(), on_ground.sum(), in_hole.sum()) > 20
    np.testing.assert_allclose(heights[on_roof], ROOF[4], atol=1e-3)
    np.testing.assert_allclose(
        heights[on_ground], (SLOPE[0] * x + SLOPE[1] * y)[on_ground], atol=1e-3
    )
    assert (heights[in_hole] == geotiff.NODATA - ORIGIN[2] - OFFSET[2]).all()


def test_colors_are_those_of_the_surface_seen_from_above(rasterio, written):
    with rasterio.open(written[0] / "orthophoto.tif") as file:
        assert (file.crs.to_epsg(), file.dtypes, file.count) == (32632, ("uint8",) * 4, 4)
        assert file.colorinterp[3] == rasterio.enums.ColorInterp.alpha
        x, y = center_places()
        bands = sample(file, x, y).astype(float)
    on_roof = is_within(x, y, ROOF, -2.5)
    in_hole = is_within(x, y, HOLE, -2.5)
    on_ground = ~is_within(x, y, ROOF, 2.5) & ~is_within(x, y, HOLE, 2.5)
    for where, color in (
        (on_roof, ROOF_COLOR),
        (on_ground & (x < 32), LEFT_COLOR),
        (on_ground & (x > 38), RIGHT_COLOR),
    ):
        np.testing.assert_allclose(
            bands[where], np.tile([*(255 * np.array(color)), 255], (where.sum(), 1)), atol=1.01
        )
    assert (bands[in_hole] == 0).all()


def box_mesh():
    """The ground without a strip of three pixels and without its east, and the roof, a metre above
    the model."""
    boxes = [(-2.0, 50.0, -2.0, 72.0), (50.0 + 3 * PIXEL, 70.0, -2.0, 72.0)]
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in (*boxes, ROOF[:4])]
    places = np.concatenate(corners)
    height = np.r_[places[:8] @ SLOPE, np.full(4, ROOF[4])] + 1.0
    triangles = [np.array([[0, 1, 2], [0, 2, 3]]) + 4 * box for box in range(3)]
    return Mesh(
        np.concatenate([places, height[:, None]], axis=1) + ORIGIN,
        np.concatenate(triangles).astype(np.int32),
        np.tile(np.array([[10, 20, 30]], np.uint8), (12, 1)),
        np.zeros((12, 3), np.float32),
        np.repeat(np.array([2.0, 5.0, 9.0], np.float32), 4),
    )


def test_heights_are_those_of_the_mesh_and_the_second_band_is_its_confidence(rasterio, tmp_path):
    info = write(tmp_path, model(), sfm_points()[0], mesh=box_mesh(), offset="1000, -2000, 50")
    with rasterio.open(tmp_path / "dsm.tif") as file:
        assert file.count == 2 and file.descriptions == ("height", "confidence")
        assert "0 = a filled gap" in file.tags(2)["MEANING"]
        x, y = center_places(1)
        heights, confidence = sample(file, x, y).T
        confidences = file.read(2)
        has_height = file.read_masks(1) > 0
    heights = heights - ORIGIN[2] - OFFSET[2]
    with rasterio.open(tmp_path / "orthophoto.tif") as file:
        bands = sample(file, x, y).astype(float)
        # Colours reach beyond the mesh, and are wherever there is a height.
        assert (file.read_masks(1) > 0)[has_height].all()
    np.testing.assert_array_equal(confidences != geotiff.NODATA, has_height)
    on_roof = is_within(x, y, ROOF)
    in_gap = (x > 50) & (x < 50 + 3 * PIXEL)
    in_east = x > 70
    in_hole = is_within(x, y, HOLE, -2.5)
    truth = np.where(on_roof, ROOF[4], SLOPE[0] * x + SLOPE[1] * y) + 1
    is_drawn = confidence >= 0
    is_exact = is_drawn & ((x < 50 - 4 * PIXEL) | (x > 50 + 7 * PIXEL))
    np.testing.assert_allclose(heights[is_exact], truth[is_exact], atol=2e-3)
    # A filled pixel takes the mean of its neighbours, which on a slope is a pixel off at most.
    np.testing.assert_allclose(heights[in_gap], truth[in_gap], atol=2 * PIXEL * SLOPE[0])
    assert (confidence[in_gap] == 0).all()
    assert not is_drawn[in_east].any() and (bands[in_east, 3] == 255).all()
    expected = np.where(on_roof, 9, np.where(x < 50, 2, 5))[~in_gap & ~in_east]
    np.testing.assert_allclose(confidence[~in_gap & ~in_east], expected, rtol=1e-5)
    # Colours are those of surfels, and of the mesh where there is none: in the hole of the ground.
    np.testing.assert_allclose(bands[in_hole, :3], np.tile([10, 20, 30], (in_hole.sum(), 1)))
    inside = is_within(x, y, ROOF, -2.5)
    np.testing.assert_allclose(
        bands[inside, :3], np.tile(255 * np.array(ROOF_COLOR), (inside.sum(), 1)), atol=1.01
    )
    assert info["covered_share"] == pytest.approx(has_height.mean())
    assert info["filled_share"] == pytest.approx((confidences == 0).mean()) and in_gap.any()


def test_what_floats_far_above_is_not_drawn(rasterio, tmp_path, written):
    assert (written[1]["num_surfels_above"], written[1]["num_surfels_below"]) == (1, 0)
    # One that is not far above stays: it may be a mast.
    assert (
        write(tmp_path, model([((50.0, 40.0, 15.0), 6.0)]), sfm_points()[0])["num_surfels_above"]
        == 0
    )
    with rasterio.open(tmp_path / "dsm.tif") as file:
        assert file.crs is None
        assert sample(file, np.array([50.0]), np.array([40.0]), ORIGIN)[0, 0] == pytest.approx(
            ORIGIN[2] + 15, abs=1e-3
        )


def test_agreement_with_the_points_is_measured(written):
    points, num_under = sfm_points()
    found = written[1]["agreement"]
    assert found["num_points_in_raster"] == np.sum(
        (points[:, 0] < 79.5) & (points[:, 1] > 0.5)
    )  # edges belong to one side
    assert found["num_hidden"] == num_under
    in_hole = is_within(points[:, 0], points[:, 1], HOLE)
    assert 0.5 * in_hole.sum() < found["num_without_data"] <= in_hole.sum()
    # A point lies up to half a pixel from the centre of its pixel: on this slope a twentieth of a
    # pixel.
    assert found["visible_points"]["median_absolute_pixels"] < 0.1
    assert (
        found["all_points"]["absolute_90_percent"]
        <= found["all_points"]["absolute_90_percent_pixels"]
    )


def test_a_shift_of_the_model_shows_in_the_agreement(rasterio, tmp_path):
    points = sfm_points()[0]
    for pixels in (3.0, -3.0):
        moved = points + [0, 0, pixels * PIXEL]
        figures = write(tmp_path, model(), moved)["agreement"]["visible_points"]
        assert figures["median_signed_pixels"] == pytest.approx(-pixels, abs=0.1)
        assert figures["median_absolute"] == pytest.approx(3 * PIXEL, abs=0.02)


def test_points_above_the_map_count_and_those_far_below_do_not():
    heights = np.array([10.0, 10.2, 9.0, 20.0, 3.0])
    found = dsm.agreement(heights, np.array([10.0, 10.0, 10.0, 10.0, np.nan]), 0.1)
    assert (found["num_points_in_raster"], found["num_without_data"], found["num_hidden"]) == (
        5,
        1,
        1,
    )
    assert found["visible_points"]["median_absolute"] == pytest.approx(0.2)
    assert found["visible_points"]["median_absolute_pixels"] == pytest.approx(2)
    assert found["visible_points"]["absolute_90_percent"] == pytest.approx(
        np.percentile([0, 0.2, 10], 90)
    )
    assert found["all_points"]["median_signed"] == pytest.approx(-0.1)
    nothing = dsm.agreement(heights, np.full(5, np.nan), 0.1)
    assert nothing["visible_points"] is None and nothing["num_without_data"] == 5


def test_tiles_are_one_picture(rasterio, tmp_path):
    """Against the plain definition: one camera, all surfels, the whole raster at once. Every surfel
    has a colour of its own, so that one which is missing beyond a tile's edge shows."""
    surfels = model()
    colors = np.random.default_rng(0).uniform(-1.5, 1.5, surfels.sh.shape)
    surfels = surfels.replace(sh=jnp.asarray(colors, jnp.float32))
    info = write(tmp_path, surfels, sfm_points()[0])
    height = info["height"]
    width = info["width"]
    eye = np.array(
        [
            0.5 + width * PIXEL / 2,
            69.5 - height * PIXEL / 2,
            info["height_limits"][1] - ORIGIN[2] + 10.0,
        ]
    )
    pose = np.diag([1.0, -1, -1, 1])
    pose[:3, 3] = -pose[:3, :3] @ (SCALE * eye)
    pixels = 1 / (PIXEL * SCALE)
    camera = Camera(
        jnp.asarray(pose, jnp.float32),
        jnp.asarray([[pixels, 0, width / 2], [0, pixels, height / 2], [0, 0, 1]], jnp.float32),
    )
    out = rasterize(
        surfels, camera, image_size=(height, width), near=0.1, projection="orthographic"
    )
    alpha, depth, color = (
        np.asarray(a, np.float64) for a in (out.alpha, out.median_depth, out.color)
    )
    is_surface = alpha >= 0.5
    with rasterio.open(tmp_path / "dsm.tif") as file:
        heights = file.read(1) - ORIGIN[2]
        assert (file.read_masks(1) > 0).mean() == pytest.approx(info["covered_share"])
        differs = (file.read_masks(1) > 0) != is_surface
    with rasterio.open(tmp_path / "orthophoto.tif") as file:
        bands = np.moveaxis(file.read(), 0, -1)
    # Rounding turns decisions on single surfels at rims of the roof and the hole.
    off = differs | (is_surface & (np.abs(heights - (eye[2] - depth / SCALE)) > 2e-3))
    off |= is_surface & (
        np.abs(bands[..., :3] - 255 * color / np.maximum(alpha, 0.5)[..., None]).max(axis=-1) > 1
    )
    assert off.mean() < 1e-3
    seams = np.zeros_like(off)
    seams[510:514] = True
    seams[:, 510:514] = True
    assert off[seams].mean() < 5e-3


def test_a_dataset_that_is_no_map_gets_axes_of_its_ground(rasterio, tmp_path):
    info = write(tmp_path, model(), sfm_points()[0], TILT)
    assert not info["is_map"]
    with rasterio.open(tmp_path / "dsm.tif") as file:
        tags = file.tags()
        x, y = center_places(29)
        heights = sample(file, x, y, np.zeros(3))[:, 0]
    on_roof = is_within(x, y, ROOF, -2.5)
    np.testing.assert_allclose(heights[on_roof], ROOF[4], atol=1e-3)
    axes = np.array(
        [np.array(tags[f"AXIS_{name}"].split(), float) for name in ("EAST", "NORTH", "UP")]
    )
    np.testing.assert_allclose(axes, TILT, atol=1e-9)
    np.testing.assert_allclose(np.array(tags["AXES_ORIGIN"].split(), float), ORIGIN, atol=1e-5)


@pytest.mark.parametrize("settings", [GeoSettings(offset="1,0,0"), GeoSettings(epsg=32632)])
def test_map_coordinates_for_a_dataset_that_is_no_map_are_refused(rasterio, settings):
    with pytest.raises(InputError, match=r"z axis is not up \(up is \[0.6, 0.0, 0.8\]\).*align"):
        dsm.check_geo(TILT[2], settings)
    dsm.check_geo(TILT[2], GeoSettings())
    dsm.check_geo(np.array([0, 0, 1.0]), settings)


def test_nothing_to_see_and_no_points_are_said_and_leave_no_file(rasterio, tmp_path):
    faint = model().replace(logit_opacities=jnp.full(len(model().means), -8.0))
    high = model()
    high = high.replace(means=high.means + jnp.asarray([[0, 0, 1.0]]))
    for surfels, words in ((faint, "0 of .* above"), (high, f"{len(high.means)} of .* above")):
        with pytest.raises(InputError, match=f"nothing is seen from above: .*{words}"):
            write(tmp_path, surfels, sfm_points()[0])
    with pytest.raises(InputError, match="expected SfM points, .*got none"):
        write(tmp_path, model(), np.zeros((0, 3)))
    assert not list(tmp_path.iterdir())


def test_a_raster_beyond_the_memory_names_a_pixel_size_that_fits(rasterio, tmp_path):
    with pytest.raises(
        InputError, match="632x552 pixels, 3 MB, expected at most config.surface.memory_mb = 1"
    ) as refusal:
        write(tmp_path, model(), sfm_points()[0], memory_mb=1)
    size = float(str(refusal.value).split("config.geo.pixel_size=")[1].split()[0])
    assert PIXEL < size < 2 * PIXEL
    info = dsm.write_dsm(
        tmp_path / "d.tif",
        tmp_path / "o.tif",
        model(),
        frame_of(np.eye(3)),
        scene_of(sfm_points()[0], np.eye(3)),
        GeoSettings(pixel_size=size),
        memory_mb=1,
    )
    assert 0.9 * 2**20 < info["width"] * info["height"] * 8 <= 2**20


def test_the_pixel_size_is_that_of_the_photographs_on_the_ground():
    pose = np.diag([1.0, -1, -1, 1])
    pose[:3, 3] = -pose[:3, :3] @ [40.0, 35.0, 61.7]  # 0.2057 a pixel
    points = sfm_points()[0] * [1, 1, 0]
    scene = bare_scene(views_of(pose), points)
    assert dsm.choose_pixel_size(scene, GeoSettings()) == 0.21
    assert dsm.choose_pixel_size(scene, GeoSettings(pixel_size=0.7)) == 0.7
    with pytest.raises(InputError, match="config.geo.pixel_size"):
        dsm.choose_pixel_size(
            bare_scene(scene.views, points + [1e4, 0, 0]),
            GeoSettings(),
        )


def test_few_array_sizes_are_compiled(rasterio, tmp_path, monkeypatch):
    """Surfels near a tile are padded to powers of two; dead ones in front change nothing (see the
    exact heights above).
    """
    sizes = []
    draw = dsm._draw
    monkeypatch.setattr(
        dsm,
        "_draw",
        lambda surfels, *rest: sizes.append(len(surfels.means)) or draw(surfels, *rest),
    )
    write(tmp_path, jax.tree.map(np.asarray, model()), sfm_points()[0])
    assert len(sizes) == 4 and all(size & (size - 1) == 0 for size in sizes)
    assert min(sizes) < len(model().means)  # a tile does not take all


def test_settings_of_maps_are_checked():
    assert GeoSettings(offset=" 1.5, -2,3e6 ").offset_xyz() == (1.5, -2.0, 3e6)
    assert GeoSettings().offset_xyz() == (0.0, 0.0, 0.0)
    for changes, name in (
        ({"offset": "1,2"}, "offset"),
        ({"offset": "1,2,north"}, "offset"),
        ({"offset": "1,2,nan"}, "offset"),
        ({"pixel_size": -1.0}, "pixel_size"),
        ({"epsg": -1}, "epsg"),
    ):
        with pytest.raises(InputError, match=f"config.geo.{name}: expected"):
            dataclasses.replace(GeoSettings(), **changes).validate()


def test_horizon_and_sky_move_nothing(rasterio, tmp_path, caplog):
    """One point in ten a thousand kilometres away: without them and with them the files are the
    same.
    """
    points, _ = sfm_points()
    far = np.random.default_rng(0).normal(size=(len(points) // 10, 3))
    far *= 1e6 / np.linalg.norm(far, axis=1, keepdims=True)
    (tmp_path / "far").mkdir()
    expected = write(tmp_path, model(), points)
    got = write(tmp_path / "far", model(), np.concatenate([points, far]))
    assert (
        got["height_limits"] == expected["height_limits"]
        and got["agreement"] == expected["agreement"]
    )
    assert (tmp_path / "far" / "dsm.tif").read_bytes() == (tmp_path / "dsm.tif").read_bytes()
    assert f"{len(far)} of {len(points) + len(far)} SfM points are too far away" in caplog.text


def test_the_ends_of_a_long_strip_are_near():
    strip = np.stack([np.linspace(0, 10_000, 500), np.zeros(500), np.zeros(500)], axis=1)
    assert ground.is_near(strip, strip + [0, 0, 80.0]).all()
    assert ground.is_near(np.zeros((0, 3)), strip).shape == (0,)
