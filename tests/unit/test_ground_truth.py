"""Files of the ground truth."""

from pathlib import Path

import dataset_files
import numpy as np
import pytest

from cosurfgs_jax.data.ground_truth import load_ground_truth
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

VERTICES = np.random.default_rng(4).normal(1e5, 1, (7, 3))
NORMALS = np.random.default_rng(5).normal(size=(7, 3)).astype(np.float32)
TRIANGLES = np.array([[0, 1, 2], [4, 3, 6]])


def _write(root):
    write_ply(
        root / "ground_truth/points.ply",
        table_of(("x y z", "f8", VERTICES), ("nx ny nz", "f4", NORMALS)),
    )
    write_ply(root / "ground_truth/mesh.ply", table_of(("x y z", "f8", VERTICES)), TRIANGLES)


def test_no_ground_truth_is_none(tmp_path):
    assert load_ground_truth(tmp_path) is None


def test_what_was_written_comes_back_exactly(tmp_path):
    _write(tmp_path)
    truth = load_ground_truth(tmp_path)
    for got, expected in (
        (truth.points, VERTICES),
        (truth.mesh_vertices, VERTICES),
        (truth.normals, NORMALS),
        (truth.mesh_triangles, TRIANGLES),
    ):
        np.testing.assert_array_equal(got, expected)
    assert truth.depth_path(0) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "points.ply").unlink(), r"points\.ply: cannot be read"),
        (
            lambda folder: write_ply(folder / "points.ply", table_of(("x y z", "f8", VERTICES))),
            r"points\.ply: .*without nx",
        ),
        (
            lambda folder: write_ply(folder / "mesh.ply", table_of(("x y z", "f8", VERTICES))),
            r"mesh\.ply: .*without triangles",
        ),
        (
            lambda folder: write_ply(
                folder / "mesh.ply", table_of(("x y z", "f8", VERTICES[:4])), TRIANGLES
            ),
            r"mesh\.ply: a triangle names vertex 6, but there are 4",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, change, message):
    _write(tmp_path)
    change(tmp_path / "ground_truth")
    with pytest.raises(InputError, match=message):
        load_ground_truth(tmp_path)


def test_exact_depth_stays_with_its_photograph_where_others_are_left_out(tmp_path):
    model = dataset_files.write_dataset(tmp_path, dataset_files.make_model(num_views=5))
    _write(tmp_path)
    (tmp_path / "ground_truth" / "depth").mkdir()
    for name in model.names:
        np.savez(
            tmp_path / "ground_truth" / "depth" / name.replace(".png", ".npz"),
            depth=np.zeros((48, 64)),
        )

    def depth_names():
        scene = load_scene(
            DataSettings(path=str(tmp_path)), GeneratedSettings(), tmp_path / "cache"
        )
        return [Path(scene.ground_truth.depth_path(view)).stem for view in range(scene.num_views)]

    assert depth_names() == [f"view_{number:02d}" for number in range(5)]
    (tmp_path / "images" / "view_01.png").unlink()
    assert depth_names() == ["view_00", "view_02", "view_03", "view_04"]
