"""Limits of what is believed, and of what is chosen from the data, at their edges."""

import types

import numpy as np
import pytest

from cosurfgs_jax import files, photograph
from cosurfgs_jax.data import checks, colmap, lookup, point_ply, track_checks
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.geometry.distortion import Lens, lens_from_params
from cosurfgs_jax.geometry.views import PointCloud
from cosurfgs_jax.metrics import depth as depth_metrics
from cosurfgs_jax.metrics import surface as surface_metrics
from cosurfgs_jax.settings import DensitySettings, Settings
from cosurfgs_jax.surface.ground import is_near
from cosurfgs_jax.surface.point_heights import agreement
from cosurfgs_jax.training import kept_place, partitioned_scene
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, round_slots, slots_for
from cosurfgs_jax.workdir import Workdir


def lens(focal=(1000.0, 1000.0), principal=(500.0, 400.0), size=(800, 1000), model="PINHOLE"):
    return Lens(model, *size, focal, principal)


@pytest.mark.parametrize(
    "good, bad, words",
    [
        ({"size": (5, 131_072)}, {"size": (5, 131_073)}, "at most 131072 pixels a side"),
        ({"focal": (5.0, 5.0)}, {"focal": (4.99, 5.0)}, "a focal length of 0.005 to 2000 times"),
        ({"focal": (2e6, 2e6)}, {"focal": (2e6, 2.001e6)}, "a focal length of 0.005 to 2000"),
        ({"focal": (1000.0, 4000.0)}, {"focal": (1000.0, 4001.0)}, "that hardly differ"),
        ({"principal": (50_500.0, 0.0)}, {"principal": (50_501.0, 0.0)}, "principal point"),
        ({"principal": (0.0, -49_600.0)}, {"principal": (0.0, -49_601.0)}, "principal point"),
    ],
)
def test_lenses(good, bad, words):
    if "size" in good:
        good, bad = ({**values, "focal": (1e5, 1e5)} for values in (good, bad))
    checks.check_lens(lens(**good), "a.json: b.jpg")
    with pytest.raises(InputError, match=f"a.json: b.jpg: expected .*{words}"):
        checks.check_lens(lens(**bad), "a.json: b.jpg")


def test_coefficients_of_distortion():
    def with_coefficient(value):
        params = [1000.0, 1000.0, 500.0, 400.0, value, 0.0, 0.0, 0.0]
        return lens_from_params("OPENCV", 800, 1000, params)

    checks.check_lens(with_coefficient(-999_999.0), "a")
    with pytest.raises(InputError, match="expected coefficients of distortion below"):
        checks.check_lens(with_coefficient(-1e6), "a")


def test_half_of_the_photographs_must_be_there(caplog):
    names = [f"{number}.jpg" for number in range(12)]
    checks.check_missing(names, [True] * 6 + [False] * 6, "model")
    text = "6 of 12 photographs are not there and are left out: "
    assert text + "6.jpg, 7.jpg, 8.jpg, 9.jpg, 10.jpg, ..." in caplog.text
    with pytest.raises(InputError, match=r"got 5 of 12 \(the first that is missing: 5.jpg\)"):
        checks.check_missing(names, [True] * 5 + [False] * 7, "model")
    with pytest.raises(InputError, match=r"got none of 0 \(.*: no frames\)"):
        checks.check_missing([], [], "model")
    assert checks.some_of(names[:5]) == "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg"


def test_names_of_images():
    files.check_name("a" * 200, "model")
    long = "/".join(["é" * 99 + "a"] * 5)  # 999 bytes
    files.check_name(long, "model")
    for name in ("a" * 201, long + "b"):
        with pytest.raises(InputError, match=r"names of at most 200 bytes, got .* \(a longer one"):
            files.check_name(name, "model")


@pytest.mark.parametrize(
    "given, short",
    [
        (["b/1.jpg", "2.jpg"], ["b/1.jpg", "2.jpg"]),
        (["./b\\1.jpg", "2.jpg"], ["b/1.jpg", "2.jpg"]),
        (["/disk/x/b/1.jpg", "/disk/x/2.jpg"], ["b/1.jpg", "2.jpg"]),
        (["/disk/x/1.jpg", "/other/x/1.jpg"], ["disk/x/1.jpg", "other/x/1.jpg"]),
        (["../1.jpg", "2.jpg"], ["1.jpg", "2.jpg"]),
        (["D:\\x\\y\\1.jpg"], ["1.jpg"]),
        (["/x/1.jpg", "/x"], ["x/1.jpg", "x"]),
    ],
)
def test_what_the_names_of_images_share_is_cut_where_they_are_of_another_machine(given, short):
    assert colmap.short_names(given) == short


@pytest.mark.parametrize(
    "kind, values, colors",
    [
        ("f4", [0, 0.25, 1.0], [0, 64, 255]),
        ("f4", [0, 0.4, 0.8], [0, 102, 204]),
        ("f4", [0, 64, 255], [0, 64, 255]),
        ("f8", [0, 1.0, 2.0], [0, 1, 2]),
        ("u2", [0, 257, 65535], [0, 1, 255]),
        ("u2", [0, 64, 255], [0, 64, 255]),
        ("u2", [0, 128, 256], [0, 0, 1]),
        ("u1", [0, 1, 1], [0, 1, 1]),
    ],
)
@pytest.mark.parametrize(
    "names", ["red green blue", "diffuse_red diffuse_green diffuse_blue", "r g b"]
)
def test_colours_of_points(tmp_path, kind, values, colors, names):
    place = ("x y z", "f4", np.arange(3.0)[None])
    write_ply(tmp_path / "p.ply", table_of(place, (names, kind, np.array([values]))))
    found = point_ply.read_points(tmp_path / "p.ply")
    assert found[0].tolist() == [[0, 1, 2]] and found[1].tolist() == [colors]
    write_ply(tmp_path / "p.ply", table_of(place))
    assert point_ply.read_points(tmp_path / "p.ply")[1].tolist() == [[128, 128, 128]]


def seen_by_one(places, num_views=1) -> Capture:
    """Points at a distance of 1 whose places in all pictures are these pixels."""
    points = np.column_stack([(np.array(places, float) - [500, 400]) / 1000, np.ones(len(places))])
    num = len(points)
    cloud = PointCloud(
        points,
        np.zeros((num, 3), np.uint8),
        num_views * np.arange(num + 1),
        np.tile(np.arange(num_views, dtype=np.int32), num),
    )
    names = [f"{view}.jpg" for view in range(num_views)]
    nothing = [None] * num_views
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    return Capture("m", names, names, nothing, [lens()] * num_views, poses, cloud, nothing)


def test_points_may_lie_a_twentieth_of_the_longer_side_outside():
    places = [(-49, 9), (-51, 9), (1049, 9), (1051, 9), (9, -49), (9, -51), (9, 849), (9, 851)]
    found = track_checks.misses(seen_by_one(places))
    assert found.tolist() == [False, True] * 4


@pytest.mark.parametrize(
    "num_right, num_wrong, is_said",
    [(2, 2, False), (1, 2, True), (0, 2, False), (0, 3, True)],
)
def test_a_view_is_wrong_where_it_misses_most_of_at_least_three_points(
    caplog, num_right, num_wrong, is_said
):
    track_checks.check(seen_by_one([(9, 9)] * num_right + [(-999, 9)] * num_wrong))
    assert ("1 of 1 photographs do not look at most of the points" in caplog.text) == is_said


def test_what_counts_in_a_photograph():
    photo = np.array([[[10, 20, 30, 127], [255, 255, 255, 128], [0, 0, 0, 255]]], np.uint8)
    assert photograph.mask_of(photo).tolist() == [[False, True, True]]
    assert photograph.alpha_counts(photo[..., 3]).tolist() == [[False, True, True]]
    np.testing.assert_allclose(photograph.weights_of(photo), [[127 / 255, 128 / 255, 1]])
    np.testing.assert_allclose(photograph.colors_of(photo)[0, 0], np.array([10, 20, 30]) / 255)
    gray = np.asarray(photograph.gray_of(photo))[0]
    assert gray == pytest.approx([(0.299 * 10 + 0.587 * 20 + 0.114 * 30) / 255, 1, 0], abs=1e-6)
    plain = photo[..., :3]
    assert photograph.mask_of(plain) is None and photograph.weights_of(plain) is None
    assert photograph.with_mask(plain)[0, :, 3].tolist() == [255] * 3
    assert photograph.with_mask(photo) is photo


def test_slots_are_whole_thousands_of_1024():
    assert [round_slots(number) for number in (0, 1, 1024, 1025)] == [1024, 1024, 1024, 2048]
    few = DensitySettings(growth_factor=1.5, min_slots=1)
    assert slots_for(1000, 10_000, few) == 2048 and slots_for(1000, 1800, few) == 1800
    many = DensitySettings(growth_factor=1.5, min_slots=5000)
    assert [slots_for(*case, many) for case in ((1000, 10_000), (4000, 10_000), (10, 60))] == [
        5120,
        6144,
        60,
    ]


def unchecked(function):
    """The function without the checks of tests, which stand-ins for scenes would not pass."""
    return getattr(function, "__wrapped__", function)


def uncheck(monkeypatch, *names: str) -> None:
    """The same for functions of `partitioned_scene` that others of it call."""
    for name in names:
        function = unchecked(getattr(partitioned_scene, name))
        monkeypatch.setattr(partitioned_scene, name, function)


def place_of(size, track_lengths=(), num_views=6) -> types.SimpleNamespace:
    """A scene of photographs of one size; points are seen by the first views."""
    views = [view for length in track_lengths for view in range(length)]
    num_points = len(track_lengths)
    return types.SimpleNamespace(
        num_views=num_views,
        views=types.SimpleNamespace(image_sizes=np.array([size] * num_views)),
        cloud=PointCloud(
            np.zeros((num_points, 3)),
            np.zeros((num_points, 3), np.uint8),
            np.cumsum([0, *track_lengths]),
            np.array(views, np.int32),
        ),
    )


@pytest.mark.parametrize(
    "track_lengths, views, per_point",
    [((), range(6), 4.0), ((6, 3), range(6), 4.5), ((6, 3), range(2), 2.0), ((1, 1), [0], 2.0),
     ((6, 3), [4, 5], 2.0), ((3, 3), [4, 5], 4.0)],
)  # fmt: skip
def test_a_surfel_has_32_pixels_of_a_spot(monkeypatch, track_lengths, views, per_point):
    uncheck(monkeypatch, "surface_pixels")
    place = place_of((300, 400), track_lengths)
    found = unchecked(partitioned_scene._natural_capacity)(place, np.array(views))
    assert found == int(len(views) * 120_000 / per_point / 32)


@pytest.mark.parametrize(
    "asked, natural, capacity",
    [(0, 19_999, 20_000), (0, 20_001, 20_001), (0, 5_000_001, 5_000_000), (900, 50, 450), (1, 1, 1),
     (900, 200, 900)],
)  # fmt: skip
def test_capacities_of_blocks(monkeypatch, asked, natural, capacity):
    """Of a whole place of a hundred."""
    scene = types.SimpleNamespace(
        train_views="all", cloud=types.SimpleNamespace(points=np.zeros((30, 3)))
    )
    numbers = {"all": 100, "own": natural}
    monkeypatch.setattr(partitioned_scene, "_natural_capacity", lambda _, views: numbers[views])
    monkeypatch.setattr(partitioned_scene, "_first_points", lambda *_: np.arange(30))
    partition = types.SimpleNamespace(num_blocks=1, views=["own"], lengths=[2.0])
    settings = Settings()
    settings.surfels.capacity = asked
    frame = types.SimpleNamespace(to_world=lambda points: points)
    uncheck(monkeypatch, "_capacities")
    (block,) = unchecked(partitioned_scene._plan_blocks)(scene, frame, partition, settings)
    assert (block.capacity, block.num_initial, block.length) == (capacity, min(30, capacity), 2.0)


@pytest.mark.parametrize(
    ("num_blocks", "is_enabled", "ratio", "capacity"),
    [
        (2, True, 0.4, 50_000),
        (2, True, 0.0, 30_000),
        (2, False, 0.4, 30_000),
        (1, True, 0.4, 30_000),
    ],
)
def test_blocks_that_are_pruned_grow_to_more(monkeypatch, num_blocks, is_enabled, ratio, capacity):
    monkeypatch.setattr(partitioned_scene, "_natural_capacity", lambda *_: 30_000)
    partition = types.SimpleNamespace(views=["own"] * num_blocks)
    settings = Settings()
    settings.lmc.enabled = is_enabled
    settings.lmc.prune_ratio = ratio
    found = unchecked(partitioned_scene._capacities)(None, partition, settings)
    assert found == [capacity] * num_blocks
    settings.lmc.importance_share = 0.9  # how many are pruned is not known
    found = unchecked(partitioned_scene._capacities)(None, partition, settings)
    assert found == [30_000] * num_blocks
    settings.surfels.capacity = 30_000  # what is asked for is what is trained
    scene = types.SimpleNamespace(train_views="all")
    assert unchecked(partitioned_scene._capacities)(scene, partition, settings)[0] == 30_000


@pytest.mark.parametrize(
    ("name", "value"), [("enabled", False), ("prune_ratio", 0.2), ("importance_share", 0.9)]
)
def test_a_kept_place_is_of_the_settings_that_its_capacities_come_from(tmp_path, name, value):
    (tmp_path / "photos").mkdir()
    settings = Settings()
    settings.data.path = str(tmp_path / "photos")
    workdir = Workdir(tmp_path / "run")
    before = kept_place.kept_place(settings, workdir)
    assert kept_place.kept_place(settings, workdir).folder == before.folder is not None
    setattr(settings.lmc, name, value)
    assert kept_place.kept_place(settings, workdir).folder != before.folder


@pytest.mark.parametrize(
    "size, capacity, dilation",
    [((500, 1000), 125_000, 2), ((500, 1000), 125_001, 1), ((499, 1000), 10, 1)],
)
def test_large_photographs_with_many_pixels_a_surfel_are_dilated(size, capacity, dilation):
    """1,500 steps of a quarter of half a million pixels are 1,500 for each of 125,000 surfels."""
    place = types.SimpleNamespace(
        scene=place_of(size), blocks=[types.SimpleNamespace(capacity=capacity)]
    )
    settings = Settings()
    settings.train.steps = 1500
    assert PartitionedScene.dilation(place, settings) == dilation
    # What compression will prune need not be learned as well.
    place.blocks = [types.SimpleNamespace(capacity=2 * capacity)] * 2
    settings.lmc.prune_ratio = 0.5
    assert PartitionedScene.dilation(place, settings) == dilation
    settings.surfels.capacity = 2 * capacity  # given for what is trained
    assert PartitionedScene.dilation(place, settings) == (dilation if capacity == 10 else 1)


def test_points_of_the_horizon_are_not_of_the_place():
    centers = np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]])
    points = np.array([[1.0, 0, 0]] * 5 + [[0, 29.9, 0], [0, 30.1, 0]])
    assert is_near(points, centers).tolist() == [True] * 6 + [False]
    assert is_near(np.zeros((0, 3)), centers).shape == (0,)


def test_how_a_height_map_agrees_with_points():
    """Points of 0; of 0.5 pixels, the fifth is hidden, the sixth is not in the map."""
    heights = np.array([0.1, -0.2, 0.3, 2.5, 2.6, np.nan])
    found = agreement(np.zeros(6), heights, 0.5)
    assert (found["num_points_in_raster"], found["num_without_data"], found["num_hidden"]) == (
        6, 1, 1
    )  # fmt: skip
    assert found["hidden_below_pixels"] == 5.0
    expected = {
        "median_absolute": 0.25, "median_signed": 0.2, "absolute_90_percent": 0.3 + 0.7 * 2.2,
        "median_absolute_pixels": 0.5, "median_signed_pixels": 0.4,
        "absolute_90_percent_pixels": 0.6 + 1.4 * 2.2,
    }  # fmt: skip
    assert found["visible_points"] == pytest.approx(expected)
    assert found["all_points"]["median_signed"] == pytest.approx(0.3)
    assert agreement(np.zeros(1), np.array([np.nan]), 0.5)["visible_points"] is None


def test_long_names_and_odd_ones_are_no_files(tmp_path):
    assert lookup.FileIndex(tmp_path).find_all(["a" * 300, "a\0", ""], "m") == [None] * 3


def test_depth_is_right_within_a_hundredth():
    truth = np.full((1, 4), 100.0)
    depth = np.array([[101.0, 99.0, 101.01, 98.99]])
    assert depth_metrics.depth_errors(depth, truth)["within_1_percent"] == 0.5


def test_spacings_and_means_of_points():
    assert surface_metrics._mean_spacing(np.zeros((1, 3))) == 0
    two = np.array([[0.0, 0, 0], [3, 4, 0]])
    assert surface_metrics._mean_spacing(two) == 5
    assert surface_metrics._mean_spacing(np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])) == 4 / 3
    points = np.array([[5.0, 5, 5], [5.9, 5, 5], [6.1, 5, 5], [5, 6.5, 5], [5, 5, 7.0]])
    found = surface_metrics.grid_downsample(points, 1.0)
    expected = [[5.45, 5, 5], [5, 5, 7], [5, 6.5, 5], [6.1, 5, 5]]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("is_mesh", [False, True])
def test_thresholds_of_a_surface(is_mesh):
    found = surface_metrics._thresholds(None, 0.3, 100.0, is_mesh)
    fine = "" if is_mesh else ", finer than the ground truth"
    assert found == [
        (0.3 * 1.5, "1.5 x mean nearest-neighbour distance of the ground truth"),
        (0.1, "0.10% of the width" + fine),
        (0.25, "0.25% of the width" + fine),
        (0.5, "0.50% of the width"),
    ]
    given = surface_metrics._thresholds((0.3, 0.2), 0.3, 100.0, is_mesh)
    assert given == [(0.3, "given"), (0.2, "given" + fine)]
