"""Photographs: formats, masks, sizes, undistortion and the cache."""

import threading
import time
from pathlib import Path

import dataset_files
import numpy as np
import pytest
from helpers import real_scene
from PIL import Image

from cosurfgs_jax.data import images, photo_files
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import distortion
from cosurfgs_jax.settings import DataSettings, GeneratedSettings


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _first(scene, view=0):
    with images.ImageStore(scene, 64) as store:
        return store.load(view)


def _block_mean(values, factor):
    height = values.shape[0] // factor
    width = values.shape[1] // factor
    blocks = values[: height * factor, : width * factor].astype(np.float64)
    return blocks.reshape(height, factor, width, factor, -1).mean((1, 3))


def test_full_size_is_what_is_on_disk(tmp_path):
    dataset_files.write_dataset(tmp_path)
    scene = _load(tmp_path)
    for view in range(4):
        np.testing.assert_array_equal(_first(scene, view), dataset_files.picture(48, 64, seed=view))
    assert not scene.has_masks and scene.views.image_sizes.tolist() == [[48, 64]] * 4


@pytest.mark.parametrize(("width", "height", "factor"), [(64, 48, 2), (64, 48, 4), (67, 50, 3)])
def test_downscale_averages_whole_squares(tmp_path, width, height, factor):
    cameras = {7: ("PINHOLE", width, height, [60.0, 61.0, 31.5, 24.25])}
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(cameras=cameras))
    scene = _load(tmp_path, downscale=factor)
    mean = _block_mean(dataset_files.picture(height, width), factor)
    # Pillow divides by 9 in fixed point, a little too small.
    assert np.abs(_first(scene).astype(np.float64) - mean).max() <= (0.56 if factor == 3 else 0.5)
    assert scene.views.image_sizes[0].tolist() == list(mean.shape[:2])
    np.testing.assert_allclose(
        scene.views.intrinsics[0, :2],
        np.array([[60, 0, 31.5], [0, 61, 24.25]]) / factor,
        rtol=1e-14,
    )


def test_ready_made_reduced_folder_is_used(tmp_path):
    cameras = {7: ("PINHOLE", 101, 75, [60.0, 61.0, 31.5, 24.25])}
    model = dataset_files.make_model(cameras=cameras)
    dataset_files.write_dataset(tmp_path, model)
    dataset_files.write_images(model, tmp_path / "images_2", divide=2)
    scene = _load(tmp_path, downscale=2)
    np.testing.assert_array_equal(_first(scene), dataset_files.picture(37, 50))
    # The true ratio of each axis.
    expected = np.array([[60 * 50 / 101, 0, 31.5 * 50 / 101], [0, 61 * 37 / 75, 24.25 * 37 / 75]])
    np.testing.assert_allclose(scene.views.intrinsics[0, :2], expected, rtol=1e-14)
    # A factor that has no folder starts from images/; a folder that was asked for is shrunk by what
    # is left.
    third = _first(_load(tmp_path, downscale=3))
    np.testing.assert_allclose(third, _block_mean(dataset_files.picture(75, 101), 3), atol=0.6)
    assert _load(tmp_path, images="images_2").views.image_sizes[0].tolist() == [37, 50]
    assert _load(tmp_path, images="images_2", downscale=2).views.image_sizes[0].tolist() == [37, 50]
    assert _load(tmp_path, images="images_2", downscale=4).views.image_sizes[0].tolist() == [18, 25]
    with pytest.raises(
        InputError, match=r"config\.data\.downscale: expected a multiple of 2, .*got 3"
    ):
        _load(tmp_path, images="images_2", downscale=3)


def test_reduced_folders_with_other_endings_and_wrong_sizes(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    for name in model.names:
        (tmp_path / "images_2").mkdir(exist_ok=True)
        Image.open(tmp_path / "images" / name).resize((32, 24)).save(
            tmp_path / "images_2" / name.replace("png", "jpg")
        )
    assert _load(tmp_path, downscale=2).image_paths[0].endswith("images_2/view_00.jpg")
    Image.new("RGB", (30, 24)).save(tmp_path / "images_2" / "view_02.jpg")
    with pytest.raises(
        InputError, match=r"images_2/view_02\.jpg: expected 32x24 pixels .*got 30x24"
    ):
        _load(tmp_path, downscale=2)
    (tmp_path / "images_2").rename(tmp_path / "images_4")
    with pytest.raises(InputError, match=r"images_4: expected images of 1/4 .*got 32x24"):
        _load(tmp_path, downscale=4)


def test_downscale_that_leaves_nothing(tmp_path):
    dataset_files.write_dataset(tmp_path)
    with pytest.raises(InputError, match=r"config\.data\.downscale: .*got 8, which leaves 8x6"):
        _load(tmp_path, downscale=8)


@pytest.mark.parametrize(
    ("ending", "mode"),
    [
        ("png", "L"),
        ("png", "I;16"),
        ("png", "P"),
        ("png", "1"),
        ("tif", "I;16"),
        ("tif", "RGB"),
        ("jpg", "L"),
        ("jpg", "CMYK"),
    ],
)
def test_formats(tmp_path, ending, mode):
    names = [f"view_{i}.{ending}" for i in range(3)]
    model = dataset_files.make_model(names=names)
    dataset_files.write_binary(model, tmp_path / "sparse" / "0")
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    expected = ((grey.astype(np.int64) + 128) // 257).astype(np.uint8)
    (tmp_path / "images").mkdir()
    for name in names:
        if mode == "I;16":
            image = Image.fromarray(grey)
        elif mode == "1":
            image = Image.fromarray(np.where(grey < 32768, 0, 255).astype(np.uint8)).convert("1")
            expected = np.where(grey < 32768, 0, 255)
        else:
            image = (
                Image.fromarray(expected)
                .convert("RGB")
                .convert(mode, palette=Image.Palette.ADAPTIVE)
            )
        image.save(tmp_path / "images" / name, **({"quality": 100} if ending == "jpg" else {}))
    loaded = _first(_load(tmp_path))
    assert loaded.shape == (48, 64, 3) and loaded.dtype == np.uint8
    np.testing.assert_allclose(
        loaded, np.repeat(expected[..., None], 3, axis=2), atol=2 if ending == "jpg" else 0
    )


def test_real_numbers_are_refused(tmp_path):
    names = ["a.tif", "b.tif"]
    dataset_files.write_binary(dataset_files.make_model(names=names), tmp_path / "sparse" / "0")
    (tmp_path / "images").mkdir()
    for name in names:
        Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "images" / name)
    with pytest.raises(InputError, match=r"a\.tif: expected an image of 8 or 16 bits"):
        _first(_load(tmp_path))


@pytest.mark.parametrize("ending", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_orientation_tags_are_not_applied_as_in_colmap(tmp_path, ending, orientation):
    path = tmp_path / f"x.{ending}"
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:8, :12] = 200
    if ending == "tif":
        Image.fromarray(pixels).save(path, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(path, exif=exif)
    header = photo_files.read_header(path)
    assert (header.height, header.width) == (20, 40)
    np.testing.assert_allclose(
        np.asarray(images.read_photograph(path)[0]).astype(int), pixels, atol=12
    )
    pycolmap = pytest.importorskip("pycolmap")
    np.testing.assert_allclose(
        pycolmap.Bitmap.read(path, True).to_array().astype(int), pixels, atol=12
    )


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.99])
def test_truncated_images_are_found_at_once(tmp_path, ending, fraction):
    names = [f"view_{i}.{ending}" for i in range(3)]
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(names=names))
    path = tmp_path / "images" / names[1]
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match=rf"view_1\.{ending}: expected a whole image"):
        _load(tmp_path)


def test_jpegs_with_something_behind_the_end_are_fine(tmp_path):
    names = ["a.jpg", "b.jpg"]
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(names=names))
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes() + b"maker's notes")
    assert _first(_load(tmp_path)).shape == (48, 64, 3)


def test_images_that_change_after_the_check(tmp_path):
    dataset_files.write_dataset(tmp_path)
    scene = _load(tmp_path)
    with images.ImageStore(scene, 64) as store:
        Image.new("RGB", (64, 47)).save(scene.image_paths[1])
        with pytest.raises(InputError, match=r"view_01\.png: expected 64x48 pixels .*got 64x47"):
            store.load(1)
        data = Path(scene.image_paths[2]).read_bytes()
        Path(scene.image_paths[2]).write_bytes(data[:500])
        store.prefetch([2])
        for _ in range(2):
            with pytest.raises(InputError, match=r"view_02\.png: expected a whole image"):
                store.load(2)
        Path(scene.image_paths[2]).write_bytes(data)  # what was wrong once is not wrong for ever
        np.testing.assert_array_equal(store.load(2), dataset_files.picture(48, 64, seed=2))


@pytest.mark.parametrize("place", ["view_00.png.png", "view_00.png", "sub/a.jpg.png", "sub/a.png"])
def test_mask_files(tmp_path, place):
    model = dataset_files.make_model(names=["sub/a.jpg", "view_00.png"])
    dataset_files.write_dataset(tmp_path, model)
    keep = np.zeros((48, 64), bool)
    keep[:30, 7:] = True
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    Image.fromarray(keep.astype(np.uint8) * 255).save(tmp_path / "masks" / place)
    scene = _load(tmp_path)
    masked = 0 if "sub" in place else 1
    assert scene.has_masks
    np.testing.assert_array_equal(_first(scene, masked)[..., 3], np.where(keep, 255, 0))
    assert np.all(_first(scene, 1 - masked)[..., 3] == 255)
    # A pixel that holds anything ignored is ignored.
    half = _first(_load(tmp_path, downscale=2), masked)[..., 3]
    np.testing.assert_array_equal(half == 255, _block_mean(keep, 2)[..., 0] == 1)


@pytest.mark.parametrize("kind", ["labels", "half size", "colour", "16 bit"])
def test_kinds_of_masks(tmp_path, kind):
    dataset_files.write_dataset(tmp_path)
    keep = np.zeros((48, 64), bool)
    keep[:30, 8:] = True
    mask = {
        "labels": keep.astype(np.uint8),
        "half size": keep[::2, ::2].astype(np.uint8) * 255,
        "colour": np.repeat(keep[..., None], 3, axis=2).astype(np.uint8) * 250,
        "16 bit": keep.astype(np.uint16) * 65535,
    }[kind]
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "view_00.png")
    np.testing.assert_array_equal(_first(_load(tmp_path))[..., 3] == 255, keep)


def test_alpha_channels_are_masks(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    rgb = dataset_files.picture(48, 64)
    keep = np.arange(64) >= 20
    alpha = np.tile(np.where(keep, 255, 90).astype(np.uint8), (48, 1))
    Image.fromarray(np.concatenate([rgb, alpha[..., None]], axis=2)).save(
        tmp_path / "images" / model.names[0]
    )
    scene = _load(tmp_path)
    assert scene.has_masks
    np.testing.assert_array_equal(_first(scene)[..., :3], rgb)
    np.testing.assert_array_equal(_first(scene)[..., 3], np.tile(np.where(keep, 255, 0), (48, 1)))


def test_masks_that_fit_nothing(tmp_path):
    dataset_files.write_dataset(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "readme.txt").write_text("no mask")
    assert not _load(tmp_path).has_masks
    Image.new("L", (64, 48), 255).save(tmp_path / "masks" / "other.png")
    with pytest.raises(
        InputError,
        match=r"masks: expected masks named .*got 1 files that fit no image, the first is other",
    ):
        _load(tmp_path)
    Image.new("L", (64, 60), 255).save(tmp_path / "masks" / "view_00.png")
    with pytest.raises(
        InputError, match=r"view_00\.png: expected a mask of .*shape, 64x48 pixels, got 64x60"
    ):
        _first(_load(tmp_path))


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("OPENCV", [170.0, 175.0, 101.0, 72.5, -0.2, 0.05, 0.004, -0.003]),
        ("OPENCV_FISHEYE", [120.0, 118.0, 97.5, 76.0, 0.02, -0.01, 0.001, 0.0]),
    ],
)
@pytest.mark.parametrize("downscale", [1, 2])
def test_undistorted_images_show_what_the_pinhole_sees(tmp_path, model, params, downscale):
    """A photograph is painted from a smooth pattern of rays; the loaded image must be that pattern
    as the pinhole has it.
    """

    def paint(rays):
        waves = np.array([[5.0, 2.0], [-3.0, 4.0], [1.0, -6.0]])
        return 127.5 + 100 * np.sin(rays @ waves.T)

    lens = distortion.lens_from_params(model, 150, 200, params)
    names = ["a.png", "b.png"]
    dataset_files.write_binary(
        dataset_files.make_model(names=names, cameras={1: (model, 200, 150, params)}),
        tmp_path / "sparse" / "0",
    )
    ys, xs = np.mgrid[0:150, 0:200] + 0.5
    photo = paint(distortion.normalised_from_pixels(lens, np.stack([xs, ys], axis=-1)))
    (tmp_path / "images").mkdir()
    for name in names:
        Image.fromarray(np.round(photo).astype(np.uint8)).save(tmp_path / "images" / name)
    scene = _load(tmp_path, downscale=downscale)
    loaded = _first(scene)
    height, width = scene.views.image_sizes[0]
    assert loaded.shape == (height, width, 3) and scene.distortion[0].model == model
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    pixels = np.stack([xs, ys, np.ones_like(xs)], axis=-1)
    expected = paint((pixels @ np.linalg.inv(scene.views.intrinsics[0]).T)[..., :2])
    error = np.abs(loaded - expected)
    # 8 bits twice over and linear interpolation of waves of 100 pixels; half a pixel off would be 2
    # levels in the mean.
    assert error.mean() < 0.5 and error.max() < 3.5
    # No black border.
    assert loaded.min() > 20


def test_masks_are_undistorted_with_the_image(tmp_path):
    camera = ("SIMPLE_RADIAL", 200, 150, [170.0, 100.0, 75.0, -0.2])
    dataset_files.write_dataset(
        tmp_path, dataset_files.make_model(names=["a.png", "b.png"], cameras={1: camera})
    )
    (tmp_path / "masks").mkdir()
    left_half = np.tile(np.where(np.arange(200) < 100, 255, 0).astype(np.uint8), (150, 1))
    Image.fromarray(left_half).save(tmp_path / "masks" / "a.png")
    scene = _load(tmp_path)
    mask = _first(scene)[..., 3]
    assert set(np.unique(mask)) == {0, 255}
    # The middle column stays where it is.
    width = scene.views.image_sizes[0, 1]
    assert np.all(mask[:, : width // 2 - 1] == 255) and np.all(mask[:, width // 2 + 1 :] == 0)


def test_resample_at_pixel_centres_between_them_and_outside():
    image = np.array([[[10], [20]], [[30], [50]]], np.uint8)
    places = np.array(
        [[[0.5, 0.5], [1.0, 0.5], [1.5, 1.5]], [[1.0, 1.0], [-3.0, 0.5], [9.0, 9.0]]], np.float32
    )
    assert images.resample(image, places)[..., 0].tolist() == [[10, 15, 50], [28, 10, 50]]


def test_cache_stays_within_the_budget_and_drops_the_longest_unused(tmp_path, monkeypatch):
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=6))
    scene = _load(tmp_path)
    reads = []
    original = images.read_photograph
    monkeypatch.setattr(
        images,
        "read_photograph",
        lambda path, *size: reads.append(path[-6:-4]) or original(path, *size),
    )
    with images.ImageStore(scene, 64) as store:
        store._budget = 3 * 48 * 64 * 3
        for view in (0, 1, 2, 0, 3, 0, 2, 1):
            store.load(view)
        # 3 drops 1, which is then read again.
        assert reads == ["00", "01", "02", "03", "01"]
        assert (
            store._num_bytes
            == sum(image.nbytes for image in store._cache.values())
            <= store._budget
        )
        store._budget = 100
        store.load(4)
        store.load(4)
        assert reads[-2:] == ["04", "04"]


@pytest.mark.parametrize("num_channels", [3, 4])
def test_prefetch_reads_once_and_no_more_than_fits(tmp_path, monkeypatch, num_channels):
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=8))
    if num_channels == 4:
        (tmp_path / "masks").mkdir()
        Image.new("L", (64, 48), 255).save(tmp_path / "masks" / model.names[0])
    scene = _load(tmp_path)
    reads = []
    original = images.read_photograph
    monkeypatch.setattr(
        images, "read_photograph", lambda path, *size: reads.append(path) or original(path, *size)
    )
    with images.ImageStore(scene, 64) as store:
        store._budget = 5 * 48 * 64 * num_channels
        store.prefetch(range(8))
        with store._lock:
            assert {*store._pending, *store._cache} == {*range(5)}
        for view in range(5):
            np.testing.assert_array_equal(
                store.load(view)[..., :3], dataset_files.picture(48, 64, seed=view)
            )
        assert sorted(reads) == scene.image_paths[:5]


def test_many_threads_get_the_same_pictures(tmp_path):
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=6))
    scene = _load(tmp_path)
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                view = int(rng.integers(6))
                store.prefetch(rng.integers(0, 6, 2))
                np.testing.assert_array_equal(
                    store.load(view), dataset_files.picture(48, 64, seed=view)
                )
        except BaseException as error:  # noqa: BLE001 - reported below, in the main thread
            errors.append(error)

    with images.ImageStore(scene, 64) as store:
        store._budget = 2 * 48 * 64 * 3
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors and not any(thread.is_alive() for thread in threads)
        # The last pictures that were asked for in advance are still being read.
        deadline = time.monotonic() + 30
        while store._pending and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store._num_bytes <= store._budget and not store._pending


def test_loaded_pictures_cannot_be_spoilt(tmp_path):
    dataset_files.write_dataset(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        _first(_load(tmp_path))[0, 0, 0] = 1


def test_real_photographs():
    scene = _load(real_scene("caliterra"), downscale=4)
    photo = np.asarray(Image.open(scene.image_paths[3]))
    assert np.abs(_first(scene, 3).astype(np.float64) - _block_mean(photo, 4)).max() <= 0.5 + 1e-9


def test_the_generated_town_is_kept_by_its_settings(tmp_path, monkeypatch):
    from cosurfgs_jax.data.town import dataset

    made = []

    def make(settings, folder):
        made.append((settings.num_views, folder))
        if not folder.exists():
            dataset_files.write_dataset(
                folder, dataset_files.make_model(num_views=settings.num_views)
            )

    monkeypatch.setattr(dataset, "make_town", make)
    scenes = [
        load_scene(DataSettings(), GeneratedSettings(num_views=number, seed=seed), tmp_path)
        for number, seed in ((4, 0), (4, 0), (5, 0), (5, 1))
    ]
    assert [scene.num_views for scene in scenes] == [4, 4, 5, 5]
    folders = [folder for _, folder in made]
    assert folders[0] == folders[1] and len(set(folders)) == 3
    assert all(
        folder.parent == tmp_path and folder.name.startswith("generated-") for folder in folders
    )
    assert scenes[0].name == "generated" and scenes[0].ground_truth is None
    with pytest.raises(InputError, match=r"config\.generated\.num_views"):
        load_scene(DataSettings(), GeneratedSettings(num_views=1), tmp_path)
