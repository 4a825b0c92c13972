"""The list of cameras that RealityScan writes, against a published pair."""

import numpy as np
import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.realityscan import read_list

NAMES = [*enumerate("abc")]


def test_the_angles_are_those_of_a_published_pair(tmp_path):
    """One camera as an XMP file and as a line of the list have it, from a thread of the forum; the
    last number of the matrix is cut off there.
    """
    path = tmp_path / "cameras.csv"
    angles = "163.736597399311,83.4154313461628,174.386496244756"
    path.write_text(f"#name,x,y,alt,heading,pitch,roll,f\na.jpg,0,0,0,{angles},30\n")
    (photo,) = read_list(path).photos
    published = [
        [0.982594073038806, 0.185426733553445, -0.0112166890261935],
        [-0.032113633044729, 0.11008102707942, -0.993403685341366],
        [-0.18296885582437, 0.976472781986697, 0.114],
    ]
    np.testing.assert_allclose(photo.camera_from_local[:2, :3], published[:2], atol=1e-12)
    np.testing.assert_allclose(photo.camera_from_local[2, :3], published[2], atol=1e-3)


def test_degrees_are_told_from_a_small_place_in_metres(tmp_path):
    """Of three photographs 100 m above: 0.04 degrees are 4 km, 0.06 m are a turntable."""
    path = tmp_path / "cameras.csv"

    def write(step: float) -> None:
        rows = (f"{name}.jpg,{7 + number * step},47,100,0,0,0,30" for number, name in NAMES)
        path.write_text("\n".join(["#name,x,y,alt,heading,pitch,roll,f", *rows]))

    write(0.02)
    with pytest.raises(InputError, match=r"metres, got them within 0\.04 of each other, which are"):
        read_list(path)
    write(0.03)
    centers = [-p.camera_from_local[:3, :3].T @ p.camera_from_local[:3, 3]
               for p in read_list(path).photos]  # fmt: skip
    np.testing.assert_allclose(centers, [[7, 47, 100], [7.03, 47, 100], [7.06, 47, 100]])
