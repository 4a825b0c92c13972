"""Files of poses of other programs: written here by the formulas that their makers document, read
back, and compared by where points are seen.
"""

import numpy as np
import pytest
from flight_case import LATITUDE, LONGITUDE, gps_of, random_rotation
from posed_scene import (
    FOCAL,
    HEIGHT,
    K1,
    K2,
    K3,
    PRINCIPAL,
    RADIAL_X,
    RADIAL_Y,
    WIDTH,
    Scene,
    distorted,
    place,
    row_of,
)
from scipy.spatial.transform import Rotation

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


def _metashape(scene, path, *, transform="", reference="", more="", kind="frame", local=None):
    """Writes cameras.xml; `local` is (scale, rotation, translation) from the scene's frame to that
    of the chunk.
    """
    scale, rotation, translation = local or (1.0, np.eye(3), np.zeros(3))
    cameras = []
    for number, (name, pose) in enumerate(zip(scene.names, scene.poses, strict=True)):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation @ pose[:3, :3].T
        matrix[:3, 3] = scale * rotation @ scene.centers[number] + translation
        label = name.removesuffix(".jpg")
        cameras.append(
            f'<camera id="{number}" sensor_id="0" component_id="0" label="{label}">'
            f"<transform>{row_of(matrix)}</transform><reference x='1' y='2' z='3'/></camera>"
        )
    path.write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<document version="2.0.0"><chunk label="Chunk 1" enabled="true"><sensors next_id="1">
<sensor id="0" label="unknown" type="{kind}"><resolution width="{WIDTH}" height="{HEIGHT}"/>
<calibration type="{kind}" class="initial"><resolution width="1" height="1"/><f>1</f></calibration>
<calibration type="{kind}" class="adjusted"><resolution width="{WIDTH}" height="{HEIGHT}"/>
<f>{FOCAL}</f><cx>{PRINCIPAL[0] - WIDTH / 2}</cx><cy>{PRINCIPAL[1] - HEIGHT / 2}</cy>
<k1>{K1}</k1><k2>{K2}</k2><k3>{K3}</k3><p1>{RADIAL_X}</p1><p2>{RADIAL_Y}</p2>{more}</calibration>
</sensor></sensors><components next_id="1"><component id="0" label="Component 1">{transform}
</component></components><cameras next_id="9" next_group_id="1"><group id="0" label="g">
{"".join(cameras[:9])}</group>{"".join(cameras[9:])}
<camera id="98" sensor_id="0" label="lost"/>
<camera id="99" sensor_id="0" label="off" enabled="false"><transform>{row_of(np.eye(4))}</transform>
</camera></cameras><reference>{reference}</reference></chunk></document>"""
    )
    return path


def test_metashape_round_trip(scene, tmp_path):
    """In a frame of its own, with B1, and labels without an ending."""
    local = (0.2, random_rotation(np.random.default_rng(0)), np.array([1.0, -2, 3]))
    path = _metashape(scene, tmp_path / "cameras.xml", more="<b1>1.5</b1>", local=local)
    known = scene.read(path)
    assert known.file.left_out == ["lost", "off"] and not known.file.has_vertical
    points = local[0] * scene.points @ local[1].T + local[2]
    scene.check(known, points, lambda found: _metashape_pixels(found, b1=1.5))
    assert list(known.lenses) == scene.names and not known.warnings


def test_metashape_of_photographs_that_were_shrunk(scene, tmp_path):
    known = scene.read(_metashape(scene, tmp_path / "cameras.xml"))
    scene.size = {"height": HEIGHT // 2, "width": WIDTH // 2}
    half = scene.read(tmp_path / "cameras.xml")
    scene.check(half, pixels_of=lambda found: _metashape_pixels(found) / 2)
    assert half.key != known.key
    scene.size = {"height": WIDTH, "width": HEIGHT}
    with pytest.raises(InputError, match="expected a photograph of 1000x750 pixels.* got 750x1000"):
        scene.read(tmp_path / "cameras.xml")


def test_coefficients_that_no_model_has_are_fitted(scene, tmp_path):
    more = "<k4>-0.03</k4><b2>0.4</b2>"
    known = scene.read(_metashape(scene, tmp_path / "cameras.xml", more=more))
    scene.check(known, pixels_of=lambda x: _metashape_pixels(x, b2=0.4, k4=-0.03), limit=0.2)
    (warning,) = known.warnings
    assert "that COLMAP's models follow to 0.1" in warning
    _metashape(scene, tmp_path / "cameras.xml", more="<k4>-0.03</k4>")
    known = scene.read(tmp_path / "cameras.xml")
    scene.check(known, pixels_of=lambda x: _metashape_pixels(x, k4=-0.03), limit=1e-3)
    _metashape(scene, tmp_path / "cameras.xml", more="<b2>9</b2>")
    with pytest.raises(InputError, match="without skew .B2."):
        scene.read(tmp_path / "cameras.xml")


def test_a_fisheye_of_metashape(scene, tmp_path):
    """x and y are the direction times the angle to the axis."""
    path = _metashape(scene, tmp_path / "cameras.xml", kind="fisheye", more="<k4>0.01</k4>")

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
    path = _metashape(
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
    path = _metashape(
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
    known = scene.read(_metashape(scene, tmp_path / "cameras.xml", local=local))
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


def _angles(pose):
    """Heading, pitch and roll of a pose, degrees."""
    turned = Rotation.from_matrix(pose[:3, :3].T @ np.diag([1.0, -1, -1]))
    heading, pitch, roll = turned.as_euler("ZXY", degrees=True)
    return -heading, pitch, roll


def _list(scene, path, shift=(0.0, 0.0, 0.0)):
    lines = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    u, v = (PRINCIPAL[0] - WIDTH / 2) / WIDTH, (PRINCIPAL[1] - HEIGHT / 2) / WIDTH
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        values = [*(center + shift), *_angles(pose), FOCAL / WIDTH * 36, u, v]
        values += [K1, K2, K3, 0, RADIAL_X, RADIAL_Y]
        lines.append(",".join([name, *(f"{value:.15e}" for value in values)]))
    path.write_text("\r\n".join(lines))
    return path


def test_realityscan_round_trip(scene, tmp_path):
    known = scene.read(_list(scene, tmp_path / "cameras.csv"))
    scene.check(known, pixels_of=_realityscan_pixels)
    found, places = place(scene, known, scene.points)
    np.testing.assert_allclose(places, scene.centers, atol=1e-6)
    assert not found.geo.has_scale and "names no coordinate system" in str(found.geo.details)


def test_realityscan_on_the_map(scene, tmp_path):
    pytest.importorskip("pyproj")
    shift = np.array([577_000.0, 5_188_000.0, 250.0])
    known = scene.read(_list(scene, tmp_path / "cameras.csv", shift))
    found, places = place(scene, known, scene.points + shift, epsg=32615)
    assert found.geo.epsg == 32615 and found.geo.has_scale
    np.testing.assert_allclose(places, scene.centers + shift, atol=1e-6)
    found, places = place(scene, known, scene.points + shift)
    assert not found.geo.is_map and "give --epsg=NUMBER" in found.warnings[0]
    assert np.abs(found.similarity.translation).max() < 1000
    np.testing.assert_allclose(places, scene.centers + shift, atol=1e-6)
    scene.centers = scene.centers * [1e-6, 1e-6, 1]
    with pytest.raises(InputError, match="which are degrees"):
        scene.read(_list(scene, tmp_path / "cameras.csv"))


@pytest.mark.parametrize("is_attribute", [False, True])
def test_xmp_files_of_realityscan(scene, tmp_path, is_attribute):
    """Rotation and coefficients are attributes in some versions."""
    u, v = (PRINCIPAL[0] - WIDTH / 2) / WIDTH, (PRINCIPAL[1] - HEIGHT / 2) / WIDTH
    folder = tmp_path / "xmp"
    folder.mkdir()
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        values = {
            "Rotation": row_of(pose[:3, :3]),
            "DistortionCoeficients": row_of([K1, K2, K3, 0, RADIAL_X, RADIAL_Y]),
        }
        inner = "".join(f"<xcr:{key}>{text}</xcr:{key}>" for key, text in values.items())
        outer = "".join(f' xcr:{key}="{text}"' for key, text in values.items())
        (folder / name).with_suffix(".xmp").write_text(
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
            'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
            'xmlns:xcr="http://www.capturingreality.com/ns/xcr/1.1#" xcr:Version="3" '
            'xcr:DistortionModel="brown3t2" xcr:Skew="0" xcr:AspectRatio="1" '
            f'xcr:FocalLength35mm="{FOCAL / WIDTH * 36!r}" xcr:PrincipalPointU="{u!r}" '
            f'xcr:PrincipalPointV="{v!r}"{outer if is_attribute else ""}>'
            f"<xcr:Position>{row_of(center)}</xcr:Position>{'' if is_attribute else inner}"
            "</rdf:Description></rdf:RDF></x:xmpmeta>"
        )
    (folder / "other.xmp").write_text("<x/>")
    known = scene.read(folder)
    scene.check(known, pixels_of=_realityscan_pixels)
    assert known.file.left_out == ["other"]
    assert scene.read(folder / "00.xmp").key == known.key
    path = folder / "00.xmp"
    path.write_text(path.read_text().replace("brown3t2", "division"))
    with pytest.raises(InputError, match="expected a distortion model of .* got division"):
        scene.read(folder)


def _pix4d(scene, folder, offset=None, system=""):
    folder.mkdir(exist_ok=True)
    lines = [
        "fileName imageWidth imageHeight",
        "camera matrix K [3x3]",
        "radial distortion [3x1]",
        "tangential distortion [2x1]",
        "camera position t [3x1]",
        "camera rotation R [3x3]",
        "camera model m = K [R|-Rt] X",
        "",
    ]
    matrix = np.array([[FOCAL, 0, PRINCIPAL[0]], [0, FOCAL, PRINCIPAL[1]], [0, 0, 1]])
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        lines += [f"{name} {WIDTH} {HEIGHT}", *map(row_of, matrix), row_of([K1, K2, K3])]
        # T1 goes with r^2 + 2 y^2 in y, and T2 with r^2 + 2 x^2 in x.
        lines += [row_of([RADIAL_Y, RADIAL_X]), row_of(center), *map(row_of, pose[:3, :3])]
    (folder / "p_calibrated_camera_parameters.txt").write_text("\n".join(lines))
    if offset is not None:
        (folder / "p_offset.xyz").write_text(row_of(offset))
    if system:
        (folder / "p_wkt.prj").write_text(system)
    return folder


def _pix4d_pixels(local):
    return distorted(local) * FOCAL + PRINCIPAL


def test_pix4d_round_trip(scene, tmp_path):
    known = scene.read(_pix4d(scene, tmp_path / "params"))
    scene.check(known, pixels_of=_pix4d_pixels)
    for name in ("p_calibrated_external_camera_parameters.txt", "p_offset.xyz"):
        (tmp_path / "params" / name).write_text("1 2 3")
        assert scene.read(tmp_path / "params" / name).key == known.key


def test_pix4d_comes_to_its_place(scene, tmp_path):
    pyproj = pytest.importorskip("pyproj")
    offset = np.array([577_000.0, 5_188_000.0, 250.0])
    system = pyproj.CRS.from_epsg(32615).to_wkt("WKT1_ESRI")
    known = scene.read(_pix4d(scene, tmp_path / "params", offset, system))
    found, places = place(scene, known, scene.points)
    assert found.geo.epsg == 32615 and found.geo.has_scale and not found.warnings
    np.testing.assert_allclose(places, scene.centers + offset, atol=1e-6)
    feet = pyproj.CRS.from_epsg(2225).to_wkt("WKT1_ESRI")
    known = scene.read(_pix4d(scene, tmp_path / "params", offset, feet))
    with pytest.raises(InputError, match="projected system in metres, got those of"):
        place(scene, known, scene.points)


def test_what_is_not_there_is_said(scene, tmp_path):
    path = _metashape(scene, tmp_path / "cameras.xml")
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


def test_a_pose_that_is_no_rotation_is_refused(scene, tmp_path):
    path = _metashape(scene, tmp_path / "cameras.xml")
    for spoilt in ("nan", "7.5e+00"):
        words = path.read_text().split("<transform>")
        words[3] = spoilt + words[3][words[3].index(" ") :]
        other = tmp_path / "other.xml"
        other.write_text("<transform>".join(words))
        with pytest.raises(InputError, match="expected (finite numbers|a rotation)"):
            scene.read(other)
