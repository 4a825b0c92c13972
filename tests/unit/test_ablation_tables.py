"""The tables of the ablation scripts, from rows as the scripts keep them."""

import sys

import ablation
import ablation_training
import pytest

from cosurfgs_jax import settings_file
from cosurfgs_jax.settings import Settings

ROW = {
    "psnr": 29.0,
    "psnr_fitted": 29.5,
    "ssim": 0.875,
    "surfels": 20_000,
    "processor_s": 62.0,
    "peak_mib": 505.0,
    "surfaces": {},
}


def surface(f1, angle):
    classes = {name: [f1 / 2, angle, -1.5] for name in ("walls", "ground")}
    return {"f1": [f1, f1 + 0.1, f1 + 0.125], "classes": classes}


def cells(table, title):
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    found = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
    return found[title]


def test_a_row_of_several_seeds_has_the_mean_and_half_of_the_range():
    default = ablation_training.VARIANTS[0]
    results = {
        "0": {default.name: ROW | {"surfaces": {"plane": surface(0.75, 10.0)}}},
        "1": {default.name: ROW | {"psnr": 30.0, "surfaces": {"plane": surface(0.5, 14.0)}}},
    }
    row = cells(ablation_training.table(results, ["plane"]), default.title)
    assert row["PSNR, dB"] == "29.50 ± 0.50" and row["fitted, dB"] == "29.50 ± 0.00"
    assert row["F1, plane depth"] == "0.625 ± 0.125 / 0.725 ± 0.125 / 0.750 ± 0.125"
    walls = row["walls: F1, angle, slope error"]
    assert walls == "0.312 ± 0.062, 12.0 ± 2.0, -1.5 ± 0.0"
    assert row["roofs: F1, angle, slope error"] == ""  # there are none


def test_without_exact_surfaces_there_are_scores_of_renders_alone():
    table = ablation_training.table({"0": {"eager": ROW}}, ["plane"])
    assert "F1" not in table and len(table.splitlines()) == 3


@pytest.mark.parametrize("variant", ablation_training.VARIANTS, ids=ablation_training.NAMES)
def test_the_settings_of_a_variant_exist(variant):
    changes = {}
    for name, text in variant.settings.items():
        kind = type(settings_file.value_of(Settings(), name))
        changes[name] = kind(text) if kind is not bool else {"true": True, "false": False}[text]
    settings_file.check(settings_file.with_values(Settings(), changes))
    assert ablation_training.NAMES.count(variant.name) == 1


def test_time_counts_all_runs_of_a_program_that_was_interrupted(tmp_path):
    spent = tmp_path / "seconds"
    spent.write_text("100.0")
    command = [sys.executable, "-c", "sum(range(10**6))"]
    assert 100.0 < ablation.timed(command, spent) < 130.0
    assert float(spent.read_text()) > 100.0


def test_angles_that_nobody_could_measure_are_left_out():
    rows = [{"tau": 0.1, "kind": "0.1 % of the width", "f1": 0.5}]
    scores = {"thresholds": rows, "classes": {"walls": {"normal_deg": None, "thresholds": rows}}}
    found = ablation_training.surface_of(scores)
    assert found == {"f1": [0.5], "classes": {"walls": [0.5, None, None]}}
    row = {"surfaces": {"plane": found}}
    assert ablation_training.class_cells([row], "plane")[0] == "0.500"


def test_settings_of_the_command_line():
    given = {"config": "configs/quickstart.py", "config.train.steps": "7"}
    given |= {"config.optim.lazy": "false", "config.loss.patch_plane_px": "0"}
    settings = ablation.given_settings(given)
    assert settings.train.steps == 7 and settings.mas.steps == 50
    assert not settings.optim.lazy and settings.loss.patch_plane_px == 0.0


def test_a_program_that_fails_ends_the_script(tmp_path):
    with pytest.raises(SystemExit) as ended:
        ablation.timed([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "seconds")
    assert ended.value.code == 7
    assert float((tmp_path / "seconds").read_text()) > 0
