"""Image files of others: what is opened, what is refused before it is decoded, and how photographs
are turned.
"""

import ast
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import dataset_files
import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax import pictures
from cosurfgs_jax.data import images, masks, photo_files
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

_STARTED: list[str] = []
sys.addaudithook(
    lambda event, _: (
        _STARTED.append(event) if event in ("subprocess.Popen", "os.system", "os.exec") else None
    )
)


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _pixels(scene, view):
    with images.ImageStore(scene, 64) as store:
        return store.load(view)


POSTSCRIPT = b"%!PS-Adobe-3.1 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = {
    "postscript": POSTSCRIPT,
    "postscript of Windows": struct.pack(
        "<IIIIIIIIH", 0xC6D3D0C5, 32, len(POSTSCRIPT), 0, 0, 0, 0, 0, 0xFFFF
    )[:32]
    + POSTSCRIPT,
    "pixmap": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #ffffff",\n"a"\n};\n',
    "text": b"no picture",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "read",
    [
        photo_files.read_header,
        photo_files.read_photograph,
        lambda path: masks.read_mask(path, 48, 64),
        pictures.read_image,
    ],
)
def test_files_of_other_formats_are_refused_and_start_nothing(tmp_path, kind, read):
    path = tmp_path / "photo.jpg"
    path.write_bytes(OTHERS[kind])
    _STARTED.clear()
    with pytest.raises(InputError, match=r"photo\.jpg: expected "):
        read(path)
    assert not _STARTED


def _png_bomb(width, height):
    """A PNG file that says it has so many black pixels; they take almost no bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = (
        b"".join(packer.compress(b"\0" * (1 + 3 * width)) for _ in range(height)) + packer.flush()
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def test_a_size_that_no_camera_has_costs_no_memory(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    _load(tmp_path)  # what is imported on the way is not the photograph's
    path = tmp_path / "images" / model.names[1]
    path.write_bytes(_png_bomb(5000, 4000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"view_01\.png: expected 64x48 pixels .*got 5000x4000"):
        _load(tmp_path)
    with pytest.raises(InputError, match="expected 64x48 pixels"):
        photo_files.read_photograph(path, (48, 64), "model")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_more_pixels_than_any_camera_has(tmp_path):
    data = bytearray(_png_bomb(8, 8))
    data[16:24] = struct.pack(">II", 65_535, 65_535)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(
        InputError, match=r"bomb\.png: expected an image of at most \d+ pixels, got 65535x65535"
    ):
        photo_files.read_header(tmp_path / "bomb.png")


def _no_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))


@pytest.mark.parametrize(
    "tail", ["none", "zeros", "notes", "second picture", "second picture and zeros"]
)
def test_jpegs_with_more_behind_the_end_are_not_decoded_at_the_start(tmp_path, monkeypatch, tail):
    picture = Image.fromarray(dataset_files.picture(48, 64))
    exif = Image.Exif()
    exif[271] = "maker"
    small = Image.new("RGB", (16, 12))
    kind = (
        {"format": "MPO", "save_all": True, "append_images": [small]}
        if "second" in tail
        else {"format": "JPEG"}
    )
    picture.save(tmp_path / "a.jpg", exif=exif, **kind)
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(
            {"zeros": b"\0" * 999, "notes": b"\xff\xd8 maker's notes"}.get(
                tail.rpartition("and ")[2], b""
            )
        )
    _no_decoding(monkeypatch)
    expected = photo_files.PhotoHeader(48, 64, False, is_jpeg=True)
    assert photo_files.read_header(tmp_path / "a.jpg") == expected
    monkeypatch.undo()
    assert photo_files.read_photograph(tmp_path / "a.jpg")[0].size == (64, 48)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: data.find(b"\xff\xda") + 400])
    assert not photo_files.read_header(tmp_path / "cut.jpg").seems_whole


@pytest.mark.parametrize("ending", ["webp", "png", "jpg"])
def test_a_whole_file_seems_whole_and_one_that_is_cut_off_does_not(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(path)
    assert photo_files.read_header(path).seems_whole
    path.write_bytes(path.read_bytes()[:-10])
    if ending == "webp":  # Pillow does not open it
        with pytest.raises(InputError, match="cannot be read"):
            photo_files.read_header(path)
    else:
        assert not photo_files.read_header(path).seems_whole


def _tiff(path, array, **tags):
    rasterio = pytest.importorskip("rasterio")
    bands = array if array.ndim == 3 else array[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=bands.shape[1],
        width=bands.shape[2],
        count=len(bands),
        dtype=bands.dtype,
        **tags,
    ) as file:
        file.write(bands)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*not been set:Warning")
@pytest.mark.parametrize(
    ("shape", "kind", "tags", "words"),
    [
        ((5, 48, 64), np.uint16, {}, "5 bands"),
        ((3, 48, 64), np.float32, {"photometric": "RGB"}, "real numbers"),
        ((48, 64), np.float32, {}, "real numbers"),
        (
            (3, 48, 64),
            np.uint16,
            {"photometric": "RGB", "interleave": "band"},
            "16 bits in a plane for each colour",
        ),
    ],
)
def test_images_of_other_instruments_are_named(tmp_path, shape, kind, tags, words):
    _tiff(tmp_path / "a.tif", np.ones(shape, kind), **tags)
    with pytest.raises(
        InputError, match=rf"a\.tif: expected an image of 8 or 16 bits .*got {words}.*convert it"
    ):
        photo_files.read_header(tmp_path / "a.tif")


@pytest.mark.filterwarnings(
    "ignore:.*not been set:Warning", "ignore::rasterio.errors.NotGeoreferencedWarning"
)
@pytest.mark.parametrize(
    "tags",
    [
        {"interleave": "band"},
        {"interleave": "pixel"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "deflate", "BIGTIFF": "YES"},
        {"interleave": "band", "compress": "lzw"},
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiffs_that_are_read_are_read_right(tmp_path, tags, kind):
    if kind == np.uint16 and tags.get("interleave") == "band":
        pytest.skip("refused")
    picture = dataset_files.picture(48, 64)
    scale = 257 if kind == np.uint16 else 1
    _tiff(
        tmp_path / "a.tif",
        np.moveaxis(picture, -1, 0).astype(kind) * kind(scale),
        photometric="RGB",
        **tags,
    )
    assert photo_files.read_header(tmp_path / "a.tif").seems_whole
    np.testing.assert_array_equal(
        np.asarray(photo_files.read_photograph(tmp_path / "a.tif")[0]), picture
    )


def _save_turned(path, pixels, orientation):
    """A photograph that a viewer who obeys its orientation shows as `pixels`."""
    back = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    if path.suffix == ".tif":
        Image.fromarray(np.ascontiguousarray(back)).save(path, tiffinfo={274: orientation})
        return
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(back)).save(path, exif=exif)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("mask", ["as stored", "as shown"])
def test_photographs_are_turned_where_their_cameras_say_so(tmp_path, caplog, ending, mask):
    names = [f"{number}.{ending}" for number in range(1, 9)]
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(names=names))
    keep = np.ones((48, 64, 3), np.uint8) * 255
    keep[:20] = 0
    (tmp_path / "masks").mkdir()
    for number, name in enumerate(names):
        _save_turned(
            tmp_path / "images" / name, dataset_files.picture(48, 64, seed=number), number + 1
        )
        if mask == "as stored":
            _save_turned(tmp_path / "masks" / f"{number + 1}.tif", keep, number + 1)
        else:
            Image.fromarray(keep).save(tmp_path / "masks" / f"{number + 1}.png")
    with caplog.at_level("INFO"):
        scene = _load(tmp_path, split="all")
    assert scene.orientations == tuple(range(1, 9)) and "7 are turned on loading" in caplog.text
    for number in range(8):
        shown = _pixels(scene, number)
        np.testing.assert_array_equal(shown[..., :3], dataset_files.picture(48, 64, seed=number))
        if (
            mask == "as shown" or number >= 4 or number == 0
        ):  # a mask with the photograph's sides is one of what is shown
            np.testing.assert_array_equal(shown[..., 3], keep[..., 0])
    np.testing.assert_array_equal(scene.views.camera_from_dataset[2, :3, 3], model.shifts[2])
    half = _load(tmp_path, downscale=2)
    assert half.views.image_sizes.tolist() == [[24, 32]] * 8


def test_orientation_says_nothing_where_the_cameras_are_those_of_stored_pixels(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    for number, name in enumerate(model.names):
        exif = Image.Exif()
        exif[274] = (1, 3, 6, 8)[number]
        Image.fromarray(dataset_files.picture(48, 64, seed=number)).save(
            tmp_path / "images" / name, exif=exif
        )
    scene = _load(tmp_path)
    for number in range(4):
        np.testing.assert_array_equal(
            _pixels(scene, number), dataset_files.picture(48, 64, seed=number)
        )


def test_turned_photographs_without_an_orientation_are_named(tmp_path):
    model = dataset_files.write_dataset(tmp_path)
    path = tmp_path / "images" / model.names[2]
    Image.fromarray(dataset_files.picture(64, 48)).save(path)
    with pytest.raises(
        InputError,
        match=r"view_02\.png: expected 64x48 .*got 48x64: it is turned by a quarter and "
        r"has no EXIF",
    ):
        _load(tmp_path)
    _save_turned(path, dataset_files.picture(48, 64), 6)
    _save_turned(tmp_path / "images" / model.names[1], dataset_files.picture(64, 48), 8)
    with pytest.raises(
        InputError,
        match=r"all photographs turned by their EXIF orientation or none, got .*view_02.*view_01",
    ):
        _load(tmp_path)


def test_no_image_is_opened_without_a_list_of_formats():
    package = Path(photo_files.__file__).parents[1]
    calls = [
        (path.name, node)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert len(calls) >= 2
    assert not [
        name for name, node in calls if "formats" not in (keyword.arg for keyword in node.keywords)
    ]
