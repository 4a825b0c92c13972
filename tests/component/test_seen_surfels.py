"""Parts of a model: read cell by cell, drawn to the same bits, exported to the same bytes."""

import shutil
import weakref

import jax
import numpy as np
import pytest
from blocks_case import NUM_BLOCKS, chosen_of, four_blocks, solid_state, surfels_of

from cosurfgs_jax.collab import merged_model
from cosurfgs_jax.collab.merged_model import MergedModel
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.outputs import commands, exports
from cosurfgs_jax.outputs.seen_surfels import seen_surfels
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.part import Part
from cosurfgs_jax.settings import PointsSettings, Settings
from cosurfgs_jax.workdir import Workdir


def _cell(number: int, choose):
    surfels = surfels_of(solid_state(four_blocks(), number))
    alive = np.asarray(surfels.alive)
    return chosen_of(jax.tree.map(lambda values: np.asarray(values)[alive], surfels), choose)


@pytest.fixture
def model() -> MergedModel:
    return MergedModel(7, "these", NUM_BLOCKS, _cell)


@pytest.mark.optimized
def test_what_views_may_show_is_drawn_to_the_same_bits(model):
    trained = Trained(Settings(), four_blocks(), model, Workdir("run"))
    order = four_blocks().views.in_space(np.arange(four_blocks().scene.num_views))
    assert sorted(order) == list(range(four_blocks().scene.num_views))
    seen = trained.seen_by(order[:2])
    assert 0 < len(seen.surfels.alive) < seen.num_all == len(trained.surfels.alive)
    few = trained.render_fn(seen.surfels)
    all_of_it = trained.render_fn(trained.surfels)
    for view in order[:2].tolist():
        expected = all_of_it(view)
        assert expected["alpha"].max() > 0.9
        for name, values in few(view).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_nobody_sees_nothing(model):
    seen = seen_surfels(model, four_blocks().views, np.zeros(0, np.int64), 0.01)
    assert len(seen.surfels.alive) == 0 and seen.num_all == sum(model.lengths.values()) > 0


@pytest.mark.parametrize("num_views", [0, 2])
def test_a_cell_is_left_before_the_next_is_read_and_only_what_is_seen_is_read_whole(num_views):
    read = []

    def read_cell(number: int, choose):
        assert not any(cell() is not None for _, _, cell in read)
        surfels = _cell(number, choose)
        read.append((number, len(surfels.alive), weakref.ref(surfels.sh)))
        return surfels

    model = MergedModel(7, "these", NUM_BLOCKS, read_cell)
    seen = seen_surfels(model, four_blocks().views, np.arange(num_views), 0.01)
    told = [(number, count) for number, count, _ in read]
    assert told[:NUM_BLOCKS] == [(number, 0) for number in range(NUM_BLOCKS)]
    again = told[NUM_BLOCKS:]
    assert [number for number, _ in again] == sorted({0} | {n for n, count in again if count})
    assert sum(count for _, count in again) == len(seen.surfels.alive)


def test_parts_of_the_chunks_are_the_model_in_order(model, monkeypatch):
    monkeypatch.setattr(merged_model, "CHUNK", 100)
    whole = model.whole()
    parts = [chunk for number in range(3) for chunk in model.chunks(Part(number, 3))]
    assert max(len(part.alive) for part in parts) == 100
    for name, values in whole.by_name().items():
        joined = np.concatenate([part.by_name()[name] for part in parts])
        np.testing.assert_array_equal(joined, values)


@pytest.mark.parametrize("form", ["ply", "points", "las"])
def test_exports_by_shards_are_those_of_one_process(model, tmp_path, monkeypatch, form):
    if form == "las":
        pytest.importorskip("laspy")
    workdir = Workdir(tmp_path / "run")
    settings = Settings(points=PointsSettings(source="surfels"))
    trained = Trained(settings, four_blocks(), model, workdir)
    monkeypatch.setattr(commands, "load_trained", lambda *_: trained)
    monkeypatch.setattr(merged_model, "CHUNK", 500)
    commands.export(settings, workdir, form)
    whole = {path.name: path.read_bytes() for path in workdir.export.iterdir()}
    for number in (2, 0, 1):
        commands.export(settings, workdir, form, Part(number, 3))
    assert len(list((workdir.root / "shards").rglob("*.npy"))) > 3
    shutil.rmtree(workdir.export)
    commands.export(settings, workdir, form)
    assert {path.name: path.read_bytes() for path in workdir.export.iterdir()} == whole
    assert not (workdir.root / "shards").exists()
    new = exports.ExportFormat("new", "", lambda _: None, lambda *_: None)
    monkeypatch.setattr(exports, "FORMATS", (*exports.FORMATS, new))
    with pytest.raises(
        InputError, match=r"--format=new: expected .* \(ply, las, laz, points\), got one"
    ):
        commands.export(Settings(), workdir, "new", Part(0, 2))
