"""What EXIF data say of position, focal length and camera, also where they are damaged."""

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.TiffImagePlugin import IFDRational

from cosurfgs_jax.data import photo_files
from cosurfgs_jax.data.photo_files import ExifTables
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.sfm.exif import ELLIPSOID, SEA_LEVEL, PhotoTags, tags_of

GPS = {1: "S", 2: (33.0, 51.0, 54.0), 3: "E", 4: (151.0, 12.0, 36.0), 5: b"\x00", 6: 52.5}


def _tags(**changes):
    tables = {"main": {271: "DJI", 272: "FC300S"}, "photo": {41989: 20}, "gps": GPS} | changes
    return tags_of(ExifTables(**tables))


def test_a_position_has_the_sign_of_its_hemisphere():
    tags = _tags()
    assert tags.latitude == pytest.approx(-33.865) and tags.longitude == pytest.approx(151.21)
    assert tags.altitude == 52.5 and tags.has_hemispheres and tags.has_position
    north = _tags(gps=GPS | {1: "N", 3: "w\0"})
    assert north.latitude == pytest.approx(33.865) and north.longitude == pytest.approx(-151.21)
    spelt = _tags(gps=GPS | {1: "South", 3: b"east\0"})
    assert (spelt.latitude, spelt.longitude) == (tags.latitude, tags.longitude)
    assert spelt.has_hemispheres
    vague = _tags(gps={key: value for key, value in GPS.items() if key not in (1, 3)})
    assert vague.latitude > 0 and not vague.has_hemispheres


@pytest.mark.parametrize(
    "reference, altitude, datum",
    [
        (b"\x01", -52.5, SEA_LEVEL),
        (1, -52.5, SEA_LEVEL),
        (b"\x02", 52.5, ELLIPSOID),
        (b"\x03", -52.5, ELLIPSOID),
        (b"", 52.5, SEA_LEVEL),
    ],
)
def test_a_height_has_the_sign_and_the_datum_of_its_reference(reference, altitude, datum):
    tags = _tags(gps=GPS | {5: reference})
    assert (tags.altitude, tags.datum) == (altitude, datum)


@pytest.mark.parametrize(
    "gps",
    [
        {},
        {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)},  # before the first fix
        GPS | {2: (IFDRational(1, 0), 0.0, 0.0)},
        GPS | {2: (float("nan"), 0.0, 0.0)},
        GPS | {2: (90.0, 0.1, 0.0)},
        GPS | {4: (180.0, 0.0, 1.0)},
        GPS | {4: (1.0, 2.0, 3.0, 4.0)},
        GPS | {4: "somewhere"},
        {key: value for key, value in GPS.items() if key != 4},
    ],
)
def test_what_is_no_position_is_none(gps):
    tags = _tags(gps=gps)
    assert not tags.has_position and tags.latitude is None and tags.longitude is None


def test_odd_kinds_of_degrees_and_heights():
    """Minutes with decimals and seconds of 0/0, signs beside a reference, and heights below."""
    minutes = _tags(gps=GPS | {2: (33.0, 51.9, IFDRational(0, 0))})
    assert minutes.latitude == pytest.approx(-33.865)
    signed = _tags(gps=GPS | {2: (-33.0, 51.0, 54.0)})
    assert signed.latitude == pytest.approx(-33.865)
    alone = _tags(gps={2: (-33.0, 51.0, 54.0), 4: (151.0, 12.0, 36.0)})
    assert alone.latitude == pytest.approx(-33.865)
    assert _tags(gps=GPS | {5: 1, 6: -52.0}).altitude == -52
    assert _tags(gps=GPS | {2: (33.0, IFDRational(0, 0), 0.0)}).latitude is None


def test_the_farthest_places_are_positions():
    tags = _tags(gps=GPS | {2: (90.0, 0.0, 0.0), 4: (180.0, 0.0, 0.0)})
    assert (tags.latitude, tags.longitude) == (-90, 180)
    middle = _tags(gps=GPS | {2: (0.0, 0.0, 0.0)})
    assert middle.has_position and middle.longitude == _tags().longitude


def test_an_equivalent_of_35_mm_refers_to_the_diagonal():
    # Sensors of 4:3 and 3:2 with the diagonal of film, 43.27 mm, are 34.6 mm and 36 mm wide.
    tags = PhotoTags(focal_35mm=24.0)
    assert tags.focal_px(3000, 4000) == pytest.approx(24 * 5000 / 43.27, rel=1e-3)
    assert tags.focal_px(4000, 3000) == tags.focal_px(3000, 4000)
    assert tags.focal_px(4000, 6000) == pytest.approx(24 / 36 * 6000)
    # 16:9 is cut from 4:3: the same width, the same focal length.
    assert tags.focal_px(2250, 4000) == tags.focal_px(3000, 4000)
    # Film has 3:2, to a few pixels.
    assert tags.focal_px(1000, 1519) == pytest.approx(24 / 36 * 1519)
    assert tags.focal_px(1000, 1521) == pytest.approx(24 / 34.6 * 1521)
    assert PhotoTags().focal_px(3000, 4000) is None


def test_names_of_cameras():
    assert _tags().camera == "DJI FC300S"
    assert _tags(main={271: b"Canon\0", 272: "Canon IXUS"}).camera == "Canon IXUS"
    assert (
        _tags(main={}).camera == "" and _tags(photo={41989: IFDRational(0, 0)}).focal_35mm is None
    )
    assert _tags(photo={36867: "2016:06:23 16:31:59\0"}).time == "2016:06:23 16:31:59"


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_files_of_all_formats_are_read(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    if ending == "tif":
        tables = TiffImagePlugin.ImageFileDirectory_v2()
        tables[272] = "FC300S"
        tables[ExifTags.IFD.Exif.value] = {41989: 20}
        tables[ExifTags.IFD.GPSInfo.value] = dict(GPS)
        image.save(path, tiffinfo=tables)
    else:
        exif = Image.Exif()
        exif[272] = "FC300S"
        exif.get_ifd(ExifTags.IFD.Exif)[41989] = 20
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(GPS)
        image.save(path, exif=exif)
    tags = tags_of(photo_files.read_exif(path))
    assert tags.latitude == pytest.approx(-33.865) and tags.altitude == 52.5
    assert (tags.camera, tags.focal_35mm) == ("FC300S", 20)


def test_damaged_data_are_none_and_a_damaged_file_is_said(tmp_path):
    path = tmp_path / "x.jpg"
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    image.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x25\x88\x04\0" * 9)
    assert tags_of(photo_files.read_exif(path)) == PhotoTags(has_hemispheres=False)
    image.save(path)
    assert photo_files.read_exif(path) == ExifTables({}, {}, {})
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match="expected a whole image"):
        photo_files.read_exif(path)
