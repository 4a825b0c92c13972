"""The table of published scenes: what runs say beside what was published."""

import json

import paper_table
import pytest

from cosurfgs_jax.program import presets
from cosurfgs_jax.workdir import Workdir

METRICS = {
    "stages": [
        {"seconds": 3600.0, "peak_bytes_per_device": 2_000_000_000},
        {"seconds": 125.0, "peak_bytes_per_device": None},
    ],
    "final": {
        "psnr": 24.125,
        "ssim": 0.7512,
        "psnr_color_corrected": 25.5,
        "ssim_color_corrected": 0.76,
        "psnr_nearest_view": 24.75,
        "ssim_nearest_view": 0.7562,
        "num_surfels": 1_234_567,
        "num_test_views": 21,
    },
    "geometry": {
        "unit": "m",
        "thresholds": [{"tau": 0.125, "kind": "1.5 x spacing", "f1": 0.5}, {"f1": 0.9}],
    },
}
CONFIG = {
    "data": {"downscale": 4, "split": "folders"},
    "train": {"steps": 30_000},
    "partition": {"num_blocks": 8},
}


def _workdir(folder, **changes):
    folder.mkdir()
    workdir = Workdir(folder)
    workdir.config.write_text(json.dumps(CONFIG))
    workdir.metrics.write_text(json.dumps(METRICS | changes))
    return workdir


def test_a_run_stands_below_what_was_published(tmp_path, capsys):
    workdir = _workdir(tmp_path / "run")
    workdir.results.write_text(json.dumps({"ours_1": {"LPIPS": 0.2345, "LPIPS_unscaled": 0.125}}))
    out = tmp_path / "table.md"
    paper_table.main([f"rubble={workdir.root}", f"--out={out}"])
    text = out.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert (
        "cosurfgs_jax: photographs shrunk by 4, split folders, 21 test photographs, 30000 steps a "
        "block, 8 blocks, F1 at 0.125 m (1.5 x spacing)." in text
    )
    lines = text.splitlines()
    ours = "| 0.500 | 1,234,567 | 1:02:05 h of training | 2.00 GB a device, training |"
    assert f"| cosurfgs_jax | plain | 24.12 | 0.751 | 0.234 (0.125 unscaled) {ours}" in lines
    assert f"| cosurfgs_jax | fitted | 25.50 | 0.760 |  {ours}" in lines
    assert f"| cosurfgs_jax | nearest view's | 24.75 | 0.756 |  {ours}" in lines
    assert "| MetroGS | nearest view's | 27.48 | 0.826 | 0.147 |  |  |  |  |" in lines
    assert (
        lines.index("| MetroGS | nearest view's | 27.48 | 0.826 | 0.147 |  |  |  |  |")
        < len(lines) - 2
    )


def test_without_surface_and_memory_the_cells_are_empty(tmp_path):
    stages = [{"seconds": 9.6, "peak_bytes_per_device": None}]
    workdir = _workdir(tmp_path / "run", geometry=None, stages=stages)
    text = paper_table.table("building", workdir)
    assert "| cosurfgs_jax | plain | 24.12 | 0.751 |  |  | 1,234,567 | 0:00:10 h of" in text
    assert "Momentum-GS (second-hand)" in text and "F1 at" not in text


def test_every_scene_has_a_preset_and_published_rows_say_their_protocol():
    names = {name.removeprefix("scenes/") for name in presets.preset_names() if "scenes/" in name}
    assert names == set(paper_table.PUBLISHED)
    kinds = {paper_table.UNKNOWN, paper_table.NEAREST}
    assert {row.appearance for rows in paper_table.PUBLISHED.values() for row in rows} == kinds


@pytest.mark.parametrize("text", ["rubble", "nowhere=.", "rubble=none"])
def test_wrong_arguments(text):
    with pytest.raises(SystemExit, match="expected SCENE=FOLDER with a scene of building"):
        paper_table.main([text])


def test_a_run_without_scores_is_refused(tmp_path):
    workdir = _workdir(tmp_path / "run", final=None)
    with pytest.raises(SystemExit, match="trained and evaluated, got no scores"):
        paper_table.main([f"rubble={workdir.root}"])
