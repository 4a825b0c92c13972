"""From a published layout to its row in the table: small towns in those of Mega-NeRF and
MatrixCity.
"""

import shutil

import numpy as np
import paper_table
import pytest
import scene_layouts
from run_programs import STARTER
from scenes import TINY, town_folder

from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.formats.ply import table_of, write_ply

FLAGS = [
    "--config.data.downscale=1",
    "--config.partition.num_blocks=1",
    "--config.partition.num_edges=1",
    "--config.train.steps=20",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=10",
    "--config.surfels.sh_degree=1",
]


@pytest.fixture(scope="module", autouse=True)
def _starter_ends():
    yield
    STARTER.close()


def _make(scene, root):
    """The folder of a town in the layout of a scene, with points beside the poses."""
    town = town_folder(TINY)
    if scene == "rubble":
        scene_layouts.write_mega_nerf(town, root, every=3)
        shutil.copytree(town / "sparse", root / "train" / "sparse")
        return root
    scene_layouts.write_matrix_city(town, root, every=3)
    cloud = read_model(town / "sparse" / "0").cloud
    path = root / "pose" / "block_A" / "points.ply"
    colors = ("red green blue", "u1", cloud.colors)
    write_ply(path, table_of(("x y z", "f8", cloud.points / 100), colors))
    return path.parent


@pytest.mark.parametrize("scene", ["rubble", pytest.param("matrix_city", marks=pytest.mark.slow)])
def test_a_scene_in_its_layout_is_trained_and_gets_its_row(scene, tmp_path, monkeypatch, capsys):
    pytest.importorskip("open3d")
    root = _make(scene, tmp_path / "layout")
    commands = []

    def run_program(name, *arguments):
        commands.append(name)
        done = STARTER.run(f"cosurfgs_jax.{name}", *arguments, timeout=300)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(paper_table, "run_program", run_program)
    argv = [f"{scene}={root}", f"--runs={tmp_path / 'runs'}", f"--flags={' '.join(FLAGS)}"]
    paper_table.main(argv)
    text = capsys.readouterr().out
    assert commands == ["train", "extract_mesh", "evaluate"]
    assert "shrunk by 1, split folders, 2 test photographs, 20 steps a block, 1 blocks." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| cosurfgs_jax | plain |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert (
        8 < float(cells[2]) < 40 and np.isfinite(float(cells[3])) and cells[7].endswith("training")
    )
