"""What is said of photographs that are not opened, or are read otherwise than they may be meant."""

import json
import re

import dataset_files
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cosurfgs_jax.data import photo_files, photo_words
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, GeneratedSettings
from cosurfgs_jax.sfm.photos import read_folder

NUM_PAGES = 3


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _write_deep(path, picture) -> None:
    """An RGB TIFF file of 16 bits a value, as Pillow cannot write one."""
    height, width, _ = picture.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    rows = {256: width, 257: height, 258: (16, 16, 16), 259: 1, 262: 2, 277: 3, 278: height}
    for tag, value in {**rows, 273: 0, 279: picture.size * 2, 284: 1}.items():
        tags[tag] = value
    head = b"II*\0\x08\0\0\0"  # Pillow adds to 273, where pixels begin, how long the tags are
    path.write_bytes(head + tags.tobytes(len(head)) + picture.astype("<u2").tobytes())


def _grey_deep(path, picture) -> None:
    Image.fromarray(picture[..., 0].astype(np.uint16)).save(path)


@pytest.mark.parametrize(
    ("write", "ending"), [(_write_deep, "tif"), (_grey_deep, "tif"), (_grey_deep, "png")]
)
@pytest.mark.parametrize(("largest", "is_said"), [(4095, True), (900, True), (65535, False)])
def test_twelve_bits_in_sixteen_are_said(tmp_path, caplog, write, ending, largest, is_said):
    picture = np.random.default_rng(0).integers(0, largest + 1, (48, 64, 3))
    paths = [tmp_path / f"{number}.{ending}" for number in range(4)]
    for path in paths:
        write(path, picture)
    header = photo_files.read_header(paths[0])
    assert header.is_deep and header.seems_whole and header.num_pages == 1
    read_folder(tmp_path, tmp_path / "out")
    said = [record.message for record in caplog.records]
    assert len(said) == is_said
    assert not said or re.search(
        rf"^--images: .* nearly black \(no value .* above \d+ of 255\), .*0.{ending} .* hold "
        rf"values of 12 bits or fewer; .*-evaluate multiply 16 \*.{ending}$",
        said[0],
    )


def test_dark_and_black_photographs_of_eight_bits_are_nobody_s_concern(tmp_path, caplog):
    for number in range(3):
        Image.new("RGB", (64, 48), (9, 9, number)).save(tmp_path / f"{number}.tif")
    _write_deep(tmp_path / "black.tif", np.zeros((48, 64, 3)))
    read_folder(tmp_path, tmp_path / "out")
    assert not caplog.records


def test_a_bright_photograph_among_dark_ones_of_sixteen_bits_says_enough(tmp_path, caplog):
    paths = [str(tmp_path / f"{number}.tif") for number in range(5)]
    for number, path in enumerate(paths):
        _grey_deep(path, np.full((48, 64, 3), 40000 if number == 2 else 3000))
    photo_words.say_dark(paths, "here")
    assert not caplog.records
    photo_words.say_dark(paths[:2], "here")
    assert "here: photographs of 16 bits" in caplog.text


def test_of_several_pages_the_first_is_read_and_that_is_said(tmp_path, caplog):
    dataset_files.write_dataset(tmp_path)
    name = sorted(path.name for path in (tmp_path / "images").iterdir())[0]
    with Image.open(tmp_path / "images" / name) as image:
        first = image.convert("RGB")
    (tmp_path / "images" / name).unlink()
    path = (tmp_path / "images" / name).with_suffix(".tif")
    others = [Image.new("RGB", first.size, color) for color in ("red", "blue")]
    first.save(path, save_all=True, append_images=others)
    assert photo_files.read_header(path).num_pages == NUM_PAGES
    np.testing.assert_array_equal(photo_files.read_photograph(path)[0], first)
    _load(tmp_path)
    wanted = f"1 photographs are TIFF files of several pages, of which the first is read: {name}"
    assert wanted in caplog.text
    caplog.clear()
    read_folder(tmp_path / "images", tmp_path / "out")
    assert "--images: 1 photographs are TIFF files of several pages" in caplog.text


def test_formats_that_are_not_opened_are_said_with_what_to_do(tmp_path, caplog):
    for number in range(3):
        Image.new("RGB", (64, 48), "red").save(tmp_path / f"{number}.jpg")
    (tmp_path / "below").mkdir()
    for name in ("a.HEIC", "b.HEIC", "below/c.avif"):
        (tmp_path / name).write_bytes(b"")
    assert len(read_folder(tmp_path, tmp_path / "out").photos) == NUM_PAGES
    assert (
        f"--images: 3 photographs in {tmp_path} are of formats that are not read: a.HEIC, b.HEIC, "
        "below/c.avif; convert the .HEIC and .avif files to JPEG first, with ImageMagick for "
        "example: magick mogrify -format jpg *.HEIC *.avif"
    ) in caplog.text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x.HEIC", "y.heic"], "2 photographs .* mogrify -format jpg \\*.HEIC \\*.heic"),
        (["images/x.NEF"], "1 photographs .* convert the .NEF files .*: rawtherapee-cli -j95"),
    ],
)
def test_a_folder_of_them_alone_is_no_dataset(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"expected a dataset in .*, got {words}"):
        _load(tmp_path)


def test_photographs_of_a_model_that_lie_there_unconverted(tmp_path, caplog):
    dataset_files.write_dataset(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InputError, match="expected its photographs, got none"):
        _load(tmp_path)
    assert "are of formats that are not read" in caplog.text


def test_names_of_json_files_in_another_case(tmp_path):
    (tmp_path / "Transforms.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(InputError, match="Transforms.json: expected its photographs"):
        _load(tmp_path)
