"""A second call of `prepare`, photographs that lie elsewhere, and positions that differ: of sets
that have poses already.
"""

import json

import pytest
from flight_case import LATITUDE, LONGITUDE
from PIL import ExifTags, Image
from posed_flight import EPSG, HEIGHT, NOISE_M, WIDTH, Flight

from cosurfgs_jax.formats.geo_json import GeoReference, read_geo, write_geo
from cosurfgs_jax.sfm import known_poses
from cosurfgs_jax.sfm.dataset_folder import (
    DatasetFolder,
    carry_over,
    drop_carried_over,
    link_files,
)


@pytest.fixture
def flight(tmp_path):
    pytest.importorskip("pyproj")
    pytest.importorskip("pycolmap")
    return Flight(tmp_path)


def test_photographs_of_transforms_may_lie_elsewhere(flight, capsys):
    """A folder with transforms.json, whose photographs are only in that of --images."""
    folder = flight.root / "nerf"
    folder.mkdir()
    (folder / "transforms.json").write_bytes(flight.write_transforms().read_bytes())
    (folder / "sparse_pc.ply").write_bytes((flight.root / "sparse_pc.ply").read_bytes())
    assert flight.prepare(folder, f"--gps={flight.write_gps()}") == 0
    assert flight.check_place(atol=3 * NOISE_M).num_views == 18
    assert "registered 18 of 18 photographs" in capsys.readouterr().out
    for name in flight.model.names[2:]:
        (flight.images / name).unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(flight.images / "other.jpg")
    assert flight.prepare(folder, "--gps=ignore") == 2
    error = capsys.readouterr().err
    assert f"copy the images to {flight.images}, or give their folder" in error
    assert "config.data.images" not in error


def test_own_photographs_of_transforms_tell_the_size_of_their_camera(flight):
    """Those of --images are twice as large, and the file does not say the size."""
    folder = flight.images.rename(flight.root / "nerf")
    path = flight.write_transforms()
    table = json.loads(path.read_text())
    del table["w"], table["h"]
    (folder / "images").mkdir()
    flight.images.mkdir()
    for name in flight.model.names:
        (folder / name).rename(folder / "images" / name)
        Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(flight.images / name)
    (folder / "transforms.json").write_text(json.dumps(table))
    (folder / "sparse_pc.ply").write_bytes((flight.root / "sparse_pc.ply").read_bytes())
    assert flight.prepare(folder, "--gps=ignore") == 0
    (camera,) = read_geo(flight.root / "out" / "geo.json").details["sfm"]["cameras"]
    assert (camera["width"], camera["height"]) == (WIDTH, HEIGHT)


def test_a_second_call_drops_what_the_first_took_along(flight):
    """Masks and the list of test photographs, where the poses have none any more."""
    out = flight.root / "out"
    masks = flight.root / "masks"
    masks.mkdir()
    for name in ("03.png", "05.png"):
        Image.new("L", (WIDTH, HEIGHT), 255).save(masks / name)
    path = flight.write_transforms()
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"test_filenames": ["images/04.jpg"]}))
    assert flight.prepare(path, "--gps=ignore") == 0
    assert sorted(each.name for each in (out / "masks").iterdir()) == ["03.jpg.png", "05.jpg.png"]
    assert (out / "test.txt").read_text() == "04.jpg\n"
    own = out / "masks" / "06.jpg.png"
    Image.new("L", (WIDTH, HEIGHT), 255).save(own)
    (masks / "03.png").unlink()
    path.write_text(json.dumps(table))
    assert flight.prepare(path, "--gps=ignore") == 0
    assert sorted(each.name for each in (out / "masks").iterdir()) == ["05.jpg.png", own.name]
    assert not (out / "test.txt").exists()
    own.unlink()
    (out / "test.txt").write_text("07.jpg\n")  # the user's
    (masks / "05.png").unlink()
    assert flight.prepare(path, "--gps=ignore") == 0
    assert not (out / "masks").exists() and (out / "test.txt").read_text() == "07.jpg\n"


def test_photographs_that_were_moved_are_followed(flight):
    path = flight.write_colmap()
    assert flight.prepare(path, "--gps=ignore") == 0
    out = flight.root / "out"
    flight.images = flight.images.rename(flight.root / "disk")
    assert flight.prepare(path, "--gps=ignore") == 0
    assert (out / "images").resolve() == flight.images.resolve()
    others = flight.root / "others"
    others.mkdir()
    for name in flight.model.names:
        (others / name).write_bytes((flight.images / name).read_bytes())
    flight.images = others
    assert flight.prepare(path, "--gps=ignore") == 2  # the first ones are still there


def write_exif(flight, north, latitude, east, longitude):
    """Photographs that all have this place in their EXIF data."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: north,
            ExifTags.GPS.GPSLatitude: (latitude, 0.0, 0.0),
            ExifTags.GPS.GPSLongitudeRef: east,
            ExifTags.GPS.GPSLongitude: (longitude, 0.0, 0.0),
        }
    )
    for name in flight.model.names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(flight.images / name, exif=exif)


def test_positions_of_a_file_stand_instead_of_wrong_ones_of_exif(flight, capsys):
    """A receiver that was wrong by degrees; with a mistake in the file they do not."""
    write_exif(flight, "S", 12.5, "E", 7.0)
    folder = flight.write_colmap()
    path = flight.write_gps()
    assert flight.prepare(folder, f"--gps={path}") == 0
    flight.check_place(atol=3 * NOISE_M)
    text = capsys.readouterr().out
    assert "suspicious: by the GPS in their EXIF data the photographs are 1" in text
    assert "km from the positions of photographs in geo.txt, which are used instead" in text
    path.write_text(path.read_text().replace(f"EPSG:{EPSG}", "EPSG:32632", 1))
    write_exif(flight, "N", LATITUDE, "W", -LONGITUDE)
    assert flight.prepare(folder, f"--gps={path}") == 2
    assert f"as EPSG:{EPSG} they are there: mend its first line" in capsys.readouterr().err


def test_bare_photographs_have_no_masks_of_earlier_poses(tmp_path):
    dataset = DatasetFolder(tmp_path / "out")
    mask = tmp_path / "a.png"
    mask.touch()
    carry_over(dataset, {"a.jpg.png": mask}, ["a.jpg"])
    own = dataset.root / "masks" / "b.jpg.png"
    own.touch()
    drop_carried_over(dataset)
    assert list((dataset.root / "masks").iterdir()) == [own]
    assert not (dataset.root / "test.txt").exists() and mask.exists()
    own.unlink()
    own.symlink_to(mask)  # the user's
    (dataset.root / "test.txt").write_text("b.jpg")
    drop_carried_over(dataset)
    assert own.is_symlink() and (dataset.root / "test.txt").read_text() == "b.jpg"


def test_points_for_given_poses_drop_the_place_of_another_frame(flight):
    """`prepare --poses` after `prepare --images` in the same folder."""
    assert flight.prepare(flight.write_colmap(), f"--gps={flight.write_gps()}") == 0
    dataset = DatasetFolder(flight.root / "out")
    other = flight.root / "other"
    other.mkdir()
    assert read_geo(dataset.geo).has_scale
    known_poses.carry_place(other, dataset)
    assert not dataset.geo.exists()
    own = GeoReference(EPSG, (1.0, 2.0, 3.0), True, {})
    write_geo(dataset.geo, own)
    known_poses.carry_place(other, dataset)
    assert read_geo(dataset.geo).offset == own.offset
    write_geo(other / "geo.json", GeoReference(EPSG, (4.0, 5.0, 6.0), True, {}))
    known_poses.carry_place(other, dataset)
    assert read_geo(dataset.geo).offset == (4.0, 5.0, 6.0)


@pytest.mark.parametrize("wanted", [["a.jpg", "b.jpg"], ["b.jpg"]])
def test_links_replace_a_link_to_the_photographs_and_never_these(tmp_path, wanted):
    """As of a dataset of bare photographs that gets their poses later."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (photos / name).write_text(name)
    (tmp_path / "images").symlink_to(photos)
    paths = {name: photos / name for name in wanted}
    for _ in range(2):
        link_files(paths, tmp_path / "images")
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == wanted
        for name in ("a.jpg", "b.jpg"):
            assert (photos / name).read_text() == name and not (photos / name).is_symlink()


def test_links_of_an_earlier_call_go(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    folder = tmp_path / "images"
    link_files({"x/a": tmp_path / "a", "b": tmp_path / "b"}, folder)
    (folder / "own").touch()
    link_files({"b": tmp_path / "b"}, folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["b", "own"]
