"""Files of poses of other programs: written here by the formulas that their makers document, read
back, and compared by where points are seen.
"""

import numpy as np
import pytest
from flight_case import LATITUDE, LONGITUDE, gps_of, random_rotation
from pose_writers import write_list, write_metashape, write_pix4d, write_xmp
from posed_scene import (
    FOCAL,
    HEIGHT,
    PRINCIPAL,
    WIDTH,
    Scene,
    distorted,
    place,
    row_of,
)

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.sfm.exif import PhotoTags

LOCAL_CS = 'LOCAL_CS["Local Coordinates (m)",LOCAL_DATUM["Local Datum",0],UNIT["metre",1]]'


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def _metashape_pixels(local, b1=0.0, b2=0.0, k4=0.0):
    """Appendix "Camera models" of the manual, with cx and cy from the middle."""
    x, y = distorted(local, k4).T
    column = WIDTH * 0.5 + (PRINCIPAL[0] - WIDTH * 0.5) + x * FOCAL + x * b1 + y * b2
    row = HEIGHT * 0.5 + (PRINCIPAL[1] - HEIGHT * 0.5) + y * FOCAL
    return np.stack([column, row], axis=1)


def test_metashape_round_trip(scene, tmp_path):
    """In a frame of its own, with B1, and labels without an ending."""
    local = (0.2, random_rotation(np.random.default_rng(0)), np.array([1.0, -2, 3]))
    path = write_metashape(scene, tmp_path / "cameras.xml", more="<b1>1.5</b1>", local=local)
    known = scene.read(path)
    assert known.file.left_out == ["lost", "off"] and not known.file.has_vertical
    points = local[0] * scene.points @ local[1].T + local[2]
    scene.check(known, points, lambda found: _metashape_pixels(found, b1=1.5))
    assert list(known.lenses) == scene.names and not known.warnings


def test_metashape_of_photographs_that_were_shrunk(scene, tmp_path):
    known = scene.read(write_metashape(scene, tmp_path / "cameras.xml"))
    scene.size = {"height": HEIGHT // 2, "width": WIDTH // 2}
    half = scene.read(tmp_path / "cameras.xml")
    scene.check(half, pixels_of=lambda found: _metashape_pixels(found) / 2)
    assert half.key != known.key
    scene.size = {"height": WIDTH, "width": HEIGHT}
    with pytest.raises(InputError, match="expected a photograph of 1000x750 pixels.* got 750x1000"):
        scene.read(tmp_path / "cameras.xml")


def test_coefficients_that_no_model_has_are_fitted(scene, tmp_path):
    more = "<k4>-0.03</k4><b2>0.4</b2>"
    known = scene.read(write_metashape(scene, tmp_path / "cameras.xml", more=more))
    scene.check(known, pixels_of=lambda x: _metashape_pixels(x, b2=0.4, k4=-0.03), limit=0.2)
    (warning,) = known.warnings
    assert "that COLMAP's models follow to 0.1" in warning
    write_metashape(scene, tmp_path / "cameras.xml", more="<k4>-0.03</k4>")
    known = scene.read(tmp_path / "cameras.xml")
    scene.check(known, pixels_of=lambda x: _metashape_pixels(x, k4=-0.03), limit=1e-3)
    write_metashape(scene, tmp_path / "cameras.xml", more="<b2>9</b2>")
    with pytest.raises(InputError, match="without skew .B2."):
        scene.read(tmp_path / "cameras.xml")


def test_a_fisheye_ofwrite_metashape(scene, tmp_path):
    """x and y are the direction times the angle to the axis."""
    path = write_metashape(scene, tmp_path / "cameras.xml", kind="fisheye", more="<k4>0.01</k4>")

    def pixels(local):
        radius = np.hypot(local[:, 0], local[:, 1])
        angle = np.arctan2(radius, local[:, 2])
        flat = np.column_stack([local[:, :2] * (angle / radius)[:, None], np.ones(len(local))])
        return _metashape_pixels(flat, k4=0.01)

    scene.check(scene.read(path), pixels_of=pixels)


@pytest.mark.parametrize("reference", [4326, 32615, "32615+5773"])
def test_metashape_comes_to_its_place_on_the_earth(scene, tmp_path, reference):
    """The chunk's transform leads to metres from the earth's centre, whatever its system."""
    pyproj = pytest.importorskip("pyproj")
    earth = pyproj.Transformer.from_crs(4979, 4978, always_xy=True)
    origin = np.array(earth.transform(LONGITUDE, LATITUDE, 250.0))
    sin_e, sin_n = np.sin(np.deg2rad([LONGITUDE, LATITUDE]))
    cos_e, cos_n = np.cos(np.deg2rad([LONGITUDE, LATITUDE]))
    east = [-sin_e, cos_e, 0]
    north = [-sin_n * cos_e, -sin_n * sin_e, cos_n]
    up = [cos_n * cos_e, cos_n * sin_e, sin_n]
    to_earth = np.array([east, north, up]).T
    expected = np.array(
        pyproj.Transformer.from_crs(4978, 4979, always_xy=True).transform(
            *(scene.centers @ to_earth.T + origin).T
        )
    ).T
    expected[:, :2] = np.array(
        pyproj.Transformer.from_crs(4326, 32615, always_xy=True).transform(*expected[:, :2].T)
    ).T
    scale, rotation, shift = 0.1, random_rotation(np.random.default_rng(1)), np.array([4.0, 5, 6])
    # earth = to_earth @ scene + origin, and chunk = scale rotation scene + shift.
    turn = to_earth @ rotation.T
    transform = (
        f"<transform><rotation>{row_of(turn)}</rotation>"
        f"<translation>{row_of(origin - turn @ shift / scale)}</translation>"
        f"<scale>{1 / scale!r}</scale></transform>"
    )
    system = pyproj.CRS.from_user_input(f"EPSG:{reference}").to_wkt()
    path = write_metashape(
        scene,
        tmp_path / "cameras.xml",
        transform=transform,
        reference=system.replace("<", "&lt;"),
        local=(scale, rotation, shift),
    )
    known = scene.read(path)
    points = scale * scene.points @ rotation.T + shift
    found, places = place(scene, known, points)
    assert found.geo.epsg == 32615 and found.geo.has_scale and not found.warnings
    assert found.geo.details["vertical_datum"] == "the ellipsoid of WGS84"
    np.testing.assert_allclose(places, expected, atol=0.02)  # UTM shrinks lengths by 0.03 %
    assert np.abs(found.similarity.apply(scene.points)).max() < 1e6
    found, _ = place(scene, known, points, epsg=26915)
    assert found.geo.epsg == 26915


def test_metashape_without_a_system(scene, tmp_path):
    """In metres and upright, it stays as it is; else GPS says where it is."""
    rotation = random_rotation(np.random.default_rng(2))
    local = (1.0, rotation, np.zeros(3))
    turn = f"<rotation>{row_of(rotation.T)}</rotation><translation>10 20 30</translation>"
    path = write_metashape(
        scene,
        tmp_path / "cameras.xml",
        transform=f"<transform>{turn}<scale>1</scale></transform>",
        reference=LOCAL_CS,
        local=local,
    )
    known = scene.read(path)
    points = scene.points @ rotation.T
    found, places = place(scene, known, points)
    assert not found.geo.is_map and not found.warnings
    np.testing.assert_allclose(places, scene.centers + [10, 20, 30], atol=1e-6)
    known = scene.read(write_metashape(scene, tmp_path / "cameras.xml", local=local))
    scene.tags = gps_of(scene.names, scene.centers, noise=0.1)
    found, _ = place(scene, known, points)
    assert found.geo.epsg == 32615 and "GPS" in found.geo.details["fit"]["method"]


def _realityscan_pixels(local):
    """XMP camera math: fractions of the longer side, from the middle."""
    x, y = distorted(local).T
    middle = np.array([WIDTH, HEIGHT]) / 2
    fractions = (np.array(PRINCIPAL) - middle) / WIDTH
    focal = FOCAL / WIDTH
    image = np.stack([focal * x + fractions[0], focal * y + fractions[1]], axis=1)
    return image * WIDTH + middle


def test_realityscan_round_trip(scene, tmp_path):
    known = scene.read(write_list(scene, tmp_path / "cameras.csv"))
    scene.check(known, pixels_of=_realityscan_pixels)
    found, places = place(scene, known, scene.points)
    np.testing.assert_allclose(places, scene.centers, atol=1e-6)
    assert not found.geo.has_scale and "names no coordinate system" in str(found.geo.details)


def test_realityscan_on_the_map(scene, tmp_path):
    pytest.importorskip("pyproj")
    shift = np.array([577_000.0, 5_188_000.0, 250.0])
    known = scene.read(write_list(scene, tmp_path / "cameras.csv", shift))
    found, places = place(scene, known, scene.points + shift, epsg=32615)
    assert found.geo.epsg == 32615 and found.geo.has_scale
    np.testing.assert_allclose(places, scene.centers + shift, atol=1e-6)
    found, places = place(scene, known, scene.points + shift)
    assert not found.geo.is_map and "give --epsg=NUMBER" in found.warnings[0]
    assert np.abs(found.similarity.translation).max() < 1000
    np.testing.assert_allclose(places, scene.centers + shift, atol=1e-6)
    scene.centers = scene.centers * [1e-6, 1e-6, 1]
    with pytest.raises(InputError, match="which are degrees"):
        scene.read(write_list(scene, tmp_path / "cameras.csv"))


@pytest.mark.parametrize("is_attribute", [False, True])
def test_xmp_files_of_realityscan(scene, tmp_path, is_attribute):
    """Rotation and coefficients are attributes in some versions."""
    folder = write_xmp(scene, tmp_path / "xmp", is_attribute)
    (folder / "other.xmp").write_text("<x/>")
    known = scene.read(folder)
    scene.check(known, pixels_of=_realityscan_pixels)
    assert known.file.left_out == ["other"]
    assert scene.read(folder / "00.xmp").key == known.key
    path = folder / "00.xmp"
    path.write_text(path.read_text().replace("brown3t2", "division"))
    with pytest.raises(InputError, match="expected a distortion model of .* got division"):
        scene.read(folder)


def _pix4d_pixels(local):
    return distorted(local) * FOCAL + PRINCIPAL


def test_pix4d_round_trip(scene, tmp_path):
    known = scene.read(write_pix4d(scene, tmp_path / "params"))
    scene.check(known, pixels_of=_pix4d_pixels)
    for name in ("p_calibrated_external_camera_parameters.txt", "p_offset.xyz"):
        (tmp_path / "params" / name).write_text("1 2 3")
        assert scene.read(tmp_path / "params" / name).key == known.key


def test_pix4d_comes_to_its_place(scene, tmp_path):
    pyproj = pytest.importorskip("pyproj")
    offset = np.array([577_000.0, 5_188_000.0, 250.0])
    system = pyproj.CRS.from_epsg(32615).to_wkt("WKT1_ESRI")
    known = scene.read(write_pix4d(scene, tmp_path / "params", offset, system))
    found, places = place(scene, known, scene.points)
    assert found.geo.epsg == 32615 and found.geo.has_scale and not found.warnings
    np.testing.assert_allclose(places, scene.centers + offset, atol=1e-6)
    feet = pyproj.CRS.from_epsg(2225).to_wkt("WKT1_ESRI")
    known = scene.read(write_pix4d(scene, tmp_path / "params", offset, feet))
    with pytest.raises(InputError, match="projected system in metres, got those of"):
        place(scene, known, scene.points)


def test_what_is_not_there_is_said(scene, tmp_path):
    path = write_metashape(scene, tmp_path / "cameras.xml")
    scene.names = [*scene.names[4:], "new.jpg"]
    scene.tags = dict.fromkeys(scene.names, PhotoTags())
    for number in range(4):
        (tmp_path / f"{number:02d}.jpg").unlink()
    (tmp_path / "new.jpg").write_bytes(b"x")
    known = scene.read(path)
    assert [text.split(":")[0] for text in known.warnings] == [
        "1 photograph of the folder have no pose in cameras.xml, and are not used",
        "4 photographs of cameras.xml are not in the folder",
    ]
    kept = known.photographs(scene.folder())
    assert [photo.name for photo in kept.photos] == scene.names[:-1]
    places = known.places(scene.names[:-1])
    between = np.linalg.norm(places[:, None] - places[None], axis=-1)
    expected = np.linalg.norm(scene.centers[4:, None] - scene.centers[None, 4:], axis=-1)
    np.testing.assert_allclose(between, expected, rtol=0.05, atol=1)
    for number in range(4, 17):
        (tmp_path / f"{number:02d}.jpg").unlink()
    with pytest.raises(InputError, match="expected at least 3 of its 18 photographs"):
        scene.read(path)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.xml", "<document><chunk/></document>", "a chunk with sensors and cameras"),
        ("a.xml", "<document><chunk>", "cut off or damaged"),
        ("a.csv", "name,x,y\n", "expected a first line with name, x, y, alt"),
        ("a.csv", "#name,x,y,alt,heading,pitch,roll,f\n", "a line for each photograph, got none"),
        ("a.csv", "#name,x,y,alt,heading,pitch,roll,f\na,1,2,b,4,5,6,7\n", "cut off or damaged"),
        ("p_calibrated_camera_parameters.txt", "a 1 2\n", "expected the line 'camera model m'"),
        ("p_calibrated_camera_parameters.txt", "camera model m\na 1 2\n", "10 lines for each"),
        ("a.json", "{}", "--cameras: expected one of cameras of Metashape"),
    ],
)
def test_a_damaged_file_is_one_sentence(scene, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        scene.read(tmp_path / name)
    with pytest.raises(InputError, match="--cameras: expected a file of poses, .* not there"):
        scene.read(tmp_path / "none")


def test_a_photograph_with_two_poses_is_refused(scene, tmp_path):
    path = write_list(scene, tmp_path / "cameras.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[5]]))
    assert len(scene.read(path).lenses) == len(scene.names)
    for column in (1, 7):
        words = lines[5].split(",")
        words[column] = "41.5"
        path.write_text("\n".join([*lines, ",".join(words)]))
        with pytest.raises(InputError, match="cameras.csv: 04.jpg: expected one pose and lens of"):
            scene.read(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("k4", -1e9, "expected a lens that COLMAP's models can follow .* differs by inf px"),
        ("k4", 1e300, "expected a lens that COLMAP's models can follow .* differs by inf px"),
        ("px", 1e9, "expected a lens that COLMAP's models can follow .* differs by inf px"),
        (
            "f",
            -30,
            "camera model .* a positive focal length and size, .*; export the cameras again",
        ),
    ],
)
def test_a_lens_that_no_camera_has_is_refused(scene, tmp_path, key, value, words):
    path = write_list(scene, tmp_path / "cameras.csv")
    lines = path.read_text().splitlines()
    names = lines[0].split(",")
    row = lines[3].split(",")
    row[names.index("k4")] = "0.01"  # a coefficient that is fitted
    row[names.index(key)] = str(value)
    lines[3] = ",".join(row)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"cameras.csv: 02.jpg: {words}"):
        scene.read(path)


def test_a_pose_that_is_no_rotation_is_refused(scene, tmp_path):
    path = write_metashape(scene, tmp_path / "cameras.xml")
    for spoilt in ("nan", "7.5e+00"):
        words = path.read_text().split("<transform>")
        words[3] = spoilt + words[3][words[3].index(" ") :]
        other = tmp_path / "other.xml"
        other.write_text("<transform>".join(words))
        with pytest.raises(InputError, match="expected (finite numbers|a rotation)"):
            scene.read(other)
