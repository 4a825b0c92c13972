"""The list of cameras that RealityScan writes, against a published pair."""

import numpy as np

from cosurfgs_jax.formats.realityscan import read_list


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
