"""Files of the ground truth."""

import numpy as np
import pytest

from cosurfgs_jax.data.ground_truth import load_ground_truth
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.ply_file import table_of, write_ply

VERTICES = np.random.default_rng(4).normal(1e5, 1, (7, 3))
NORMALS = np.random.default_rng(5).normal(size=(7, 3)).astype(np.float32)
TRIANGLES = np.array([[0, 1, 2], [4, 3, 6]])


def _write(root):
    write_ply(root / "ground_truth/points.ply", table_of(("x y z", "f8", VERTICES), ("nx ny nz", "f4", NORMALS)))
    write_ply(root / "ground_truth/mesh.ply", table_of(("x y z", "f8", VERTICES)), TRIANGLES)


def test_no_ground_truth_is_none(tmp_path):
    assert load_ground_truth(tmp_path) is None


def test_what_was_written_comes_back_exactly(tmp_path):
    _write(tmp_path)
    truth = load_ground_truth(tmp_path)
    for got, expected in ((truth.points, VERTICES), (truth.mesh_vertices, VERTICES), (truth.normals, NORMALS),
                          (truth.mesh_triangles, TRIANGLES)):
        np.testing.assert_array_equal(got, expected)
    assert truth.depth_path(0) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "points.ply").unlink(), r"points\.ply: cannot be read"),
        (lambda folder: write_ply(folder / "points.ply", table_of(("x y z", "f8", VERTICES))), r"points\.ply: .*without nx"),
        (lambda folder: write_ply(folder / "mesh.ply", table_of(("x y z", "f8", VERTICES))), r"mesh\.ply: .*without triangles"),
        (lambda folder: write_ply(folder / "mesh.ply", table_of(("x y z", "f8", VERTICES[:4])), TRIANGLES),
         r"mesh\.ply: a triangle names vertex 6, but there are 4"),
    ],
)
def test_broken_files_are_named(tmp_path, change, message):
    _write(tmp_path)
    change(tmp_path / "ground_truth")
    with pytest.raises(InputError, match=message):
        load_ground_truth(tmp_path)
