"""The stages of the pipeline with stand-ins for what takes time, and finished runs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from blocks_case import four_blocks, run_context
from stage_cases import ALL, NUM_STEPS, stage_settings

from cosurfgs_jax.collab import (
    device_stage,
    lmc_stages,
    mas_stages,
    merged_model,
    pipeline,
)
from cosurfgs_jax.collab.plans import has_edges, make_plans
from cosurfgs_jax.collab.stage_metrics import summarize_scores
from cosurfgs_jax.collab.stage_scores import Scores
from cosurfgs_jax.collab.stage_spec import StageWork
from cosurfgs_jax.collab.stages import STAGES, stages_of, total_steps
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import DataSettings, MasSettings
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.training.run import Stopped
from cosurfgs_jax.workdir import Workdir


def _partition(num_blocks: int, num_edges: int) -> Partition:
    return dataclasses.replace(
        four_blocks().partition,
        nodes=0,
        lows=np.zeros((num_blocks, 2)),
        edge_of_block=np.arange(num_blocks) * num_edges // num_blocks,
    )


@pytest.mark.parametrize(
    "num_blocks, num_edges, lmc, mas, expected",
    [
        (4, 2, True, True, ALL),
        (4, 2, False, True, ["device", "edge", "cloud"]),
        (4, 2, True, False, ["device", "lmc_device"]),
        (4, 1, True, True, ["device", "lmc_device", "cloud"]),
        (4, 4, True, True, ["device", "lmc_device", "cloud"]),
        (4, 4, False, False, ["device"]),
        (1, 1, True, True, ["device"]),
    ],
)
def test_settings_and_edges_say_which_stages_there_are(num_blocks, num_edges, lmc, mas, expected):
    partition = _partition(num_blocks, num_edges)
    assert [spec.name for spec in stages_of(stage_settings(lmc, mas), partition)] == expected
    steps = total_steps(stage_settings(lmc, mas), partition)
    assert steps == sum(NUM_STEPS[name] for name in expected)
    assert has_edges(partition) == (num_edges == 2)


def test_steps_of_the_stages():
    assert {spec.name: spec.num_steps(stage_settings()) for spec in STAGES} == NUM_STEPS
    seven = dataclasses.replace(stage_settings(), mas=MasSettings(steps=7))
    assert [spec.num_steps(seven) for spec in STAGES if "edge" in spec.name] == [7, 0]


class _Recorder:
    """Stand-ins that write down what they are called with."""

    def __init__(self, monkeypatch):
        self.calls = []
        self._monkeypatch = monkeypatch

    def replace(self, module, name, result=None):
        """Replaces a function."""

        def stand_in(*arguments, **options):
            self.calls.append((name, arguments))
            return result(*arguments, **options) if callable(result) else result

        self._monkeypatch.setattr(module, name, stand_in)

    @property
    def names(self):
        """Of what was called, in order."""
        return [name for name, _ in self.calls]


@pytest.fixture
def work(tmp_path):
    """Makes the work of a stage of four blocks in two edges."""
    with run_context(four_blocks(), tmp_path, 4, stage_settings()) as run:

        def make(name, before=None, saved=None):
            return StageWork(
                run,
                make_plans(run),
                name,
                NUM_STEPS[name],
                before,
                saved,
                object.__new__(Checkpoints),
            )

        yield make


def _stage(name: str, step: int) -> StageState:
    return StageState(name, ["states"], step, 3, 9.0)


def test_the_device_stage_starts_from_points_or_from_what_is_saved(work, monkeypatch):
    recorder = _Recorder(monkeypatch)
    recorder.replace(device_stage, "_start", _stage("device", 0))
    recorder.replace(device_stage, "_draw_test_views")
    recorder.replace(device_stage, "Trainer", SimpleNamespace(advance=lambda *_: None))
    recorder.replace(device_stage.loop, "run_stage", lambda run, stage, *_: stage)
    assert device_stage.train_blocks(work("device")).step == 0
    assert recorder.names == ["_start", "_draw_test_views", "Trainer", "run_stage"]
    recorder.calls.clear()
    assert device_stage.train_blocks(work("device", saved=_stage("device", 5))).step == 5
    assert recorder.names == ["Trainer", "run_stage"]


def test_compression_of_blocks_starts_a_stage_of_its_own(work, monkeypatch):
    recorder = _Recorder(monkeypatch)
    recorder.replace(lmc_stages, "compress_in_rounds", lambda run, stage, *_: stage)
    begun = lmc_stages.compress_blocks(work("lmc_device", before=_stage("device", 20)))
    assert begun == StageState("lmc_device", ["states"], 0, 0, 0.0)
    saved = _stage("lmc_device", 2)
    assert lmc_stages.compress_blocks(work("lmc_device", saved=saved)) is saved
    assert len(recorder.calls) == 2
    finished = work("lmc_device", saved=_stage("lmc_device", 0))._replace(num_steps=0)
    assert lmc_stages.compress_blocks(finished).step == 0
    assert len(recorder.calls) == 2, "without recovery there is nothing to go on with"


def test_compression_of_edges_prunes_once_without_training(work, monkeypatch):
    recorder = _Recorder(monkeypatch)
    result = lmc_stages.compress.Compression(["pruned"], {}, {}, {}, {})
    recorder.replace(lmc_stages.compress, "compile_compression", "programs")
    recorder.replace(lmc_stages.compress, "compress", result)
    recorder.replace(lmc_stages.loop, "drop_free_slots", ["shrunk"])
    before = _stage("edge", 2)
    stage = lmc_stages.compress_edges(work("lmc_edge", before=before))
    assert stage._replace(seconds=0.0) == StageState("lmc_edge", ["shrunk"], 0, 3, 0.0)
    assert stage.seconds < before.seconds
    (_, (_, _, ratio)), (_, (_, stage_before, programs)), (_, (_, states)) = recorder.calls
    assert stage_before is before and (programs, states) == ("programs", ["pruned"])
    assert ratio == stage_settings().lmc.edge_prune_ratio


@pytest.fixture
def distillation(monkeypatch):
    """What distillation calls, and what it gave to its teachers."""
    recorder = _Recorder(monkeypatch)
    for name in ("render", "check", "drop"):
        recorder.replace(mas_stages.Teachers, name)
    recorder.replace(mas_stages, "RequestPlanner", SimpleNamespace(partners=lambda block: block))
    recorder.replace(
        mas_stages.harmonize, "harmonize_exposure", lambda run, stage: (stage, np.ones((4, 3)))
    )
    whole = _stage("", 0)._replace(states=[SimpleNamespace(params=7, alive=8, stats=9)])
    recorder.replace(mas_stages, "_unpruned", lambda run, models: whole)
    monkeypatch.setattr(mas_stages, "FrozenModel", lambda *kept: kept)
    recorder.replace(mas_stages.compress, "crop_to_cells", ["cells"])
    recorder.replace(mas_stages.loop, "save_stage")
    recorder.replace(mas_stages, "Aggregation", SimpleNamespace(advance=print, view_of=max))
    recorder.replace(  # a bad loss names the view that Aggregation has used
        mas_stages.loop,
        "run_stage",
        lambda run, stage, end, *_, view_of: stage._replace(step=end * (view_of is max)),
    )
    monkeypatch.setattr(Checkpoints, "wait", lambda self: recorder.calls.append(("wait", ())))
    return recorder


START = ["RequestPlanner", "render", "crop_to_cells", "save_stage", "wait"]
STEPS = ["check", "Aggregation", "run_stage", "drop"]


@pytest.mark.parametrize(
    "name, before, teachers, is_first",
    [("edge", "lmc_device", "alone", True), ("cloud", "lmc_edge", "whole_edge", False)],
)
def test_distillation_renders_its_teachers_before_its_first_step(
    work, distillation, name, before, teachers, is_first
):
    distill = {spec.name: spec.run for spec in STAGES}[name]
    own = work(name, before=_stage(before, 4))
    stage = distill(own)
    assert (stage.name, stage.states, stage.step, stage.num_without_room) == (name, ["cells"], 2, 0)
    first = ["harmonize_exposure"] * is_first
    assert distillation.names == [*first, "_unpruned", *first, *START, *STEPS]
    _, states, grouping, partners = dict(distillation.calls)["render"]
    assert states == [(7, 8)], "whole models, without moments and statistics"
    unpruned = before.removeprefix("lmc_")
    assert dict(distillation.calls)["_unpruned"][1][1:] == (unpruned, NUM_STEPS[unpruned])
    assert grouping is getattr(own.plans, teachers)
    assert dict(distillation.calls)["crop_to_cells"][2] == ["states"], "the students are pruned"
    own.run.settings.mas.whole_teachers = False
    distill(own)
    renders = [arguments for name, arguments in distillation.calls if name == "render"]
    assert renders[-1][1] == ["states"], "pruned ones, where they are asked for"
    assert partners == {block: block for block in range(4)}
    assert dict(distillation.calls)["RequestPlanner"][2] is getattr(own.plans, name)


def test_distillation_that_is_saved_needs_no_stage_before(work, distillation):
    mas_stages.distill_cloud(work("cloud", saved=_stage("cloud", 1)))
    assert distillation.names == STEPS
    distillation.calls.clear()
    mas_stages.distill_cloud(work("cloud", saved=_stage("cloud", 2)))
    assert distillation.names == STEPS[1:], "a finished stage needs no teachers"


def test_scores_in_words():
    assert summarize_scores(Scores(None, None, None, None, None)) == "no test views"
    whole = Scores(20.0, 21.0, 0.5, 18.0, 19.0)
    assert summarize_scores(whole) == (
        "test PSNR 20.00 dB (21.00 fitted), at the seams 18.00 (19.00), SSIM 0.5000"
    )
    assert "seams" not in summarize_scores(whole._replace(psnr_seam=None))


@pytest.fixture
def whole_run(monkeypatch, tmp_path):
    """`train` on the town with stand-ins for the stages and the merged model."""
    recorder = _Recorder(monkeypatch)
    recorder.replace(pipeline, "open_in_all_processes", four_blocks())
    recorder.replace(pipeline, "check_photographs")
    recorder.replace(pipeline, "run_stages")
    model = SimpleNamespace(step=28, chunks=list)
    recorder.replace(pipeline, "open_merged", model)
    recorder.replace(pipeline, "write_surfel_parts", lambda path, parts: 7)
    monkeypatch.setattr(
        type(four_blocks().frame), "surfels_to_dataset", lambda self, surfels: surfels
    )
    settings = dataclasses.replace(stage_settings(), data=DataSettings(path="generated"))
    return recorder, settings, Workdir(tmp_path)


def test_a_run_writes_what_others_read_and_then_says_that_it_is_finished(whole_run, caplog):
    recorder, settings, workdir = whole_run
    caplog.set_level("INFO")
    workdir.merge_metrics(stages=[{"name": "device"}], final={"psnr": 1.0})
    pipeline.train(settings, workdir)
    assert recorder.names == [
        "open_in_all_processes",
        "check_photographs",
        "run_stages",
        "open_merged",
        "write_surfel_parts",
    ]
    path = workdir.point_cloud(28)
    assert dict(recorder.calls)["write_surfel_parts"][0] == path
    assert f"finished: 7 surfels in {path}" in caplog.text
    assert f"next: cosurfgs export --format=dsm --workdir={workdir} (" in caplog.text
    assert workdir.config.exists() and workdir.partition.exists() and workdir.cameras.exists()
    metrics = workdir.read_metrics()
    assert metrics["stages"] == [{"name": "device"}] and metrics["final"] is None
    path.parent.mkdir(parents=True)
    path.write_text("")
    recorder.calls.clear()
    pipeline.train(settings, workdir)
    assert recorder.names == ["open_in_all_processes"]
    assert f"finished already, after step 28: {path}" in caplog.text


def test_a_stopped_run_writes_no_model(whole_run, monkeypatch, caplog):
    recorder, settings, workdir = whole_run
    caplog.set_level("INFO")

    def stop(run):
        raise Stopped

    monkeypatch.setattr(pipeline, "run_stages", stop)
    with pytest.raises(SystemExit):
        pipeline.train(settings, workdir)
    assert "open_merged" not in recorder.names and not workdir.cameras.exists()
    assert "the same command goes on from there" in caplog.text


def test_there_is_no_merged_model_without_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="expected a trained model, got no checkpoint"):
        merged_model.load_merged(stage_settings(), Workdir(tmp_path), four_blocks())
