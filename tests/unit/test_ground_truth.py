"""Files of the ground truth."""

import numpy as np
import pytest

from cosurfgs_jax.data.ground_truth import load_ground_truth, read_ply, write_ply
from cosurfgs_jax.errors import InputError


def test_no_ground_truth_is_none(tmp_path):
    assert load_ground_truth(tmp_path) is None


def test_ply_round_trip_and_broken_files(tmp_path):
    rng = np.random.default_rng(4)
    vertices, normals = rng.normal(1e5, 1, (7, 3)), rng.normal(size=(7, 3)).astype(np.float32)
    triangles = rng.integers(0, 7, (5, 3))
    path = tmp_path / "mesh.ply"
    write_ply(path, vertices, normals, triangles)
    table, read = read_ply(path)
    np.testing.assert_array_equal(np.stack([table["x"], table["y"], table["z"]], 1), vertices)
    np.testing.assert_array_equal(np.stack([table["nx"], table["ny"], table["nz"]], 1), normals)
    np.testing.assert_array_equal(read, triangles)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="whole PLY data"):
        read_ply(path)
    path.write_text("solid")
    with pytest.raises(InputError, match="expected a PLY file"):
        read_ply(path)
    with pytest.raises(InputError, match="got no file"):
        read_ply(tmp_path / "none.ply")
