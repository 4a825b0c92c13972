"""Masks under every name and of every kind, and what happens to photographs of which they leave
nothing.
"""

import logging

import dataset_files
import numpy as np
import pytest
from PIL import Image

from cosurfgs_jax.data import images, masks, photo_files
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

KEEP = np.zeros((48, 64), bool)
KEEP[:30, 7:] = True


def _load(root, **data):
    return load_scene(DataSettings(path=str(root), **data), GeneratedSettings(), root / "cache")


def _channel(scene, view=0):
    with images.ImageStore(scene, 64) as store:
        return store.load(view)[..., 3] == 255


@pytest.mark.parametrize(
    "file",
    [
        "b/x.jpg.mask.tif",
        "b/x_mask.webp",
        "b/x-mask.BMP",
        "B/X.PNG",
        "b/x.JPG.png",
        "x.png",
        "scan/b/x.png",
        "b/x.jpg.MASK.png",
    ],
)
def test_names_that_programs_give(tmp_path, file):
    names = ["a/y.jpg", "b/x.jpg", "x_2.jpg"]
    dataset_files.write_dataset(tmp_path, dataset_files.make_model(names=names))
    path = tmp_path / "masks" / file
    path.parent.mkdir(parents=True)
    Image.fromarray(KEEP.astype(np.uint8) * 255).save(
        path, **({"lossless": True} if file.endswith("webp") else {})
    )
    scene = _load(tmp_path)
    assert [bool(mask) for mask in scene.mask_paths] == [False, True, False]
    np.testing.assert_array_equal(_channel(scene, 1), KEEP)


def test_masks_of_converted_photographs(tmp_path):
    for name in ("x.png", "y.heic.png"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "masks" / name).write_bytes(b"")
    folder = str(tmp_path / "masks")
    assert masks.find_masks(tmp_path, ["x.HEIC", "y.HEIC"]) == [
        f"{folder}/x.png",
        f"{folder}/y.heic.png",
    ]


def test_a_photograph_called_mask_and_two_masks_for_one(tmp_path):
    for name in ("x.png", "x_mask.png", "y.jpg", "y.png"):
        path = tmp_path / "masks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folder = str(tmp_path / "masks")
    assert masks.find_masks(tmp_path, ["x.jpg", "x_mask.jpg"]) == [
        f"{folder}/x.png",
        f"{folder}/x_mask.png",
    ]
    with pytest.raises(InputError, match=r"one mask for y\.tif, got 2 that fit it: y\.jpg, y\.png"):
        masks.find_masks(tmp_path, ["y.tif"])
    with pytest.raises(
        InputError,
        match=r"x\.png: expected the mask of one photograph, got .* a/x\.jpg and b/x\.jpg",
    ):
        masks.find_masks(tmp_path, ["a/x.jpg", "b/x.jpg"])


def _palette(colors):
    image = Image.new("P", (64, 48))
    image.putdata(KEEP.astype(np.uint8).ravel().tolist())
    image.putpalette(colors)
    return image


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("palette of labels", "png"),
        ("palette, black and white", "png"),
        ("16-bit labels", "png"),
        ("16-bit labels", "tif"),
        ("one bit", "png"),
        ("one bit", "tif"),
        ("alpha", "png"),
        ("grey and alpha", "png"),
        ("white and alpha", "png"),
        ("red", "png"),
        ("many labels", "png"),
        ("soft", "png"),
        ("soft", "jpg"),
        ("dim", "jpg"),
        ("16-bit soft", "tif"),
        ("red on white", "png"),
    ],
)
def test_kinds(tmp_path, kind, ending):
    labels = KEEP.astype(np.uint8)
    soft = np.where(
        KEEP, np.linspace(130, 255, 64).astype(np.uint8), np.linspace(0, 120, 64).astype(np.uint8)
    )
    colored = np.zeros((48, 64, 4), np.uint8)
    colored[KEEP] = [255, 255, 255, 255]
    image = {
        "palette of labels": lambda: _palette([0, 0, 0, 128, 0, 0]),
        "palette, black and white": lambda: _palette([0, 0, 0, 255, 255, 255]),
        "16-bit labels": lambda: Image.fromarray(labels.astype(np.uint16) * 3),
        "one bit": lambda: Image.fromarray(KEEP),
        "alpha": lambda: Image.fromarray(colored),
        "grey and alpha": lambda: Image.fromarray(np.stack([labels * 255, labels * 255], axis=-1)),
        "white and alpha": lambda: Image.fromarray(
            np.where(np.arange(4) < 3, 255, colored).astype(np.uint8)
        ),
        "red": lambda: Image.fromarray(labels[..., None] * np.array([200, 0, 0], np.uint8)),
        "many labels": lambda: Image.fromarray(labels * (1 + np.arange(64, dtype=np.uint8) % 7)),
        "soft": lambda: Image.fromarray(soft),
        "red on white": lambda: Image.fromarray(
            np.where(KEEP[..., None], 255, [255, 0, 0]).astype(np.uint8)
        ),
        "dim": lambda: Image.fromarray(labels * 90),
        "16-bit soft": lambda: Image.fromarray(soft.astype(np.uint16) * 257),
    }[kind]()
    path = tmp_path / f"m.{ending}"
    image.save(path, **({"quality": 100} if ending == "jpg" else {}))
    got = masks.read_mask(path, 48, 64)
    assert np.mean(got != KEEP) <= (0.03 if ending == "jpg" else 0)


def test_black_stays_black_in_lossy_files(tmp_path):
    dark = np.random.default_rng(0).integers(0, 6, (48, 64)).astype(np.uint8)
    Image.fromarray(dark).save(tmp_path / "m.jpg", quality=30)
    assert not masks.read_mask(tmp_path / "m.jpg", 48, 64).any()


def test_lossy_files_keep_what_is_brighter_than_half_of_the_brightest(tmp_path):
    stripes = np.repeat([40, 50, 90, 0], 16).astype(np.uint8)
    Image.fromarray(np.tile(stripes, (16, 1))).save(tmp_path / "m.jpg", quality=100)
    kept = masks.read_mask(tmp_path / "m.jpg", 16, 64)
    assert (kept == np.repeat([False, True, True, False], 16)).all()


def test_sizes_are_compared_before_pixels_are_decoded(tmp_path, monkeypatch):
    Image.new("L", (64 * 20, 48 * 20), 255).save(tmp_path / "large.png")
    Image.new("L", (48, 64), 255).save(tmp_path / "other.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        InputError, match=r"large\.png: expected a mask of about 64x48 pixels, got 1280x960"
    ):
        masks.read_mask(tmp_path / "large.png", 48, 64)
    with pytest.raises(
        InputError,
        match=r"other\.png: expected a mask of the photograph's shape, 64x48 pixels, got 48x64",
    ):
        masks.read_mask(tmp_path / "other.png", 48, 64)


def _with_masks(root, num_views, empty, value=0):
    model = dataset_files.write_dataset(root, dataset_files.make_model(num_views=num_views))
    (root / "masks").mkdir()
    for number, name in enumerate(model.names):
        mask = np.full((48, 64), value if number in empty else 255, np.uint8)
        mask[:12] = value if number in empty else 0
        Image.fromarray(mask).save(root / "masks" / name)
    return model


def test_photographs_with_nothing_left_are_left_out(tmp_path, caplog):
    model = _with_masks(tmp_path, 6, {2, 5})
    with caplog.at_level(logging.INFO):
        scene = _load(tmp_path)
    assert scene.image_names == [model.names[number] for number in (0, 1, 3, 4)]
    np.testing.assert_array_equal(scene.views.camera_from_dataset[2, :3, 3], model.shifts[3])
    assert "masks keep 50.0 % of the pixels of 6 photographs" in caplog.text
    assert (
        "leave nothing of 2 photographs, which are left out: view_02.png, view_05.png"
        in caplog.text
    )
    assert scene.left_out == ("view_02.png", "view_05.png")
    given = load_scene(
        DataSettings(path=str(tmp_path)), GeneratedSettings(), tmp_path, left_out=["view_00.png"]
    )
    assert given.image_names == model.names[1:], "as another job has found it"


@pytest.mark.parametrize("empty", [range(5), range(4)])
def test_masks_that_leave_nothing_at_all_are_refused(tmp_path, empty):
    _with_masks(tmp_path, 5, set(empty))
    with pytest.raises(
        InputError,
        match=rf"masks that leave nothing of {len(empty)} of 5 photographs, view_00\.png .*invert",
    ):
        _load(tmp_path)


def test_transparent_photographs_are_left_out(tmp_path):
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=4))
    clear = np.concatenate(
        [dataset_files.picture(48, 64), np.zeros((48, 64, 1), np.uint8)], axis=-1
    )
    Image.fromarray(clear).save(tmp_path / "images" / model.names[1])
    assert _load(tmp_path).image_names == [model.names[number] for number in (0, 2, 3)]


def test_masks_are_decoded_once_and_again_after_a_change(tmp_path, monkeypatch, caplog):
    model = _with_masks(tmp_path, 6, {2})
    names = [name for number, name in enumerate(model.names) if number != 2]
    decoded = []
    real = masks.decode
    monkeypatch.setattr(
        masks, "decode", lambda path, check: decoded.append(path) or real(path, check)
    )
    assert _load(tmp_path).image_names == names and len(decoded) == 6
    with caplog.at_level(logging.INFO):
        assert _load(tmp_path).image_names == names and len(decoded) == 6
    assert (
        "masks keep 62.5 % of the pixels of 6 photographs" in caplog.text
        and "view_02.png" in caplog.text
    )
    Image.new("L", (64, 48), 255).save(tmp_path / "masks" / model.names[2])
    assert _load(tmp_path).image_names == model.names and len(decoded) == 7
    notes = tmp_path / "cache" / "masks.json"
    for content in ("{", "[]", '{"a": 3}'):
        notes.write_text(content)
        assert _load(tmp_path).image_names == model.names
    assert len(decoded) == 7 + 3 * 6


def test_masks_where_nothing_can_be_kept_for_the_next_start(tmp_path):
    model = _with_masks(tmp_path, 5, {0})
    (tmp_path / "cache").write_text("no folder")
    assert _load(tmp_path).image_names == model.names[1:]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_alone_is_that_of_the_photograph(tmp_path, mode):
    colors = np.dstack([dataset_files.picture(48, 64), np.where(KEEP, 200, 30)]).astype(np.uint8)
    image = Image.fromarray(colors).convert(mode if mode != "P" else "RGBA")
    if mode == "P":
        image = Image.fromarray(KEEP.astype(np.uint8), "L").convert("P")
        image.info["transparency"] = 0
    image.save(tmp_path / "x.png")
    alpha = photo_files.read_alpha(tmp_path / "x.png", (48, 64), "model")
    np.testing.assert_array_equal(alpha, photo_files.read_photograph(tmp_path / "x.png")[1])
    assert len(np.unique(alpha)) == 2
    with pytest.raises(
        InputError, match=r"x\.png: expected 48x64 pixels as its camera in model says, got 64x48"
    ):
        photo_files.read_alpha(tmp_path / "x.png", (64, 48), "model")


def test_masks_of_photographs_whose_names_are_there_in_a_further_folder(tmp_path, caplog):
    model = dataset_files.write_dataset(
        tmp_path, dataset_files.make_model(names=["a/1.png", "1.png", "2.png", "b/3.png"])
    )
    (tmp_path / "masks").mkdir()
    for name in ("1", "2", "3"):
        Image.fromarray(KEEP).save(tmp_path / "masks" / f"{name}.png")
    scene = _load(tmp_path)
    masked = [name for name, path in zip(scene.image_names, scene.mask_paths, strict=True) if path]
    assert (
        sorted(masked) == ["1.png", "2.png", "b/3.png"]
        and "1 of 4 images have no mask" in caplog.text
    )
    assert len(model.names) == 4


def test_a_folder_of_masks_that_nobody_reads_is_said(tmp_path, caplog):
    dataset_files.write_dataset(tmp_path)
    (tmp_path / "masks").mkdir()
    assert not _load(tmp_path).has_masks and "nothing is masked" not in caplog.text
    (tmp_path / "masks" / "view_00.gif").write_bytes(b"GIF89a")
    assert not _load(tmp_path).has_masks
    assert (
        "masks: no image of a known format is in it, so that nothing is masked; it has view_00.gif"
        in caplog.text
    )
