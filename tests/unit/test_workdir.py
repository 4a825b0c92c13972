"""The folder of a run: names that programs and users rely on, and how far a run has come."""

import json

import pytest

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.run_record import note_seconds, read_timings
from cosurfgs_jax.workdir import RENDERS, Workdir


def test_names_are_those_of_the_contract(tmp_path):
    workdir = Workdir(tmp_path)
    expected = {
        workdir.config: "config.json",
        workdir.partition: "partition.json",
        workdir.plan: "plan.json",
        workdir.block(3).config: "blocks/3/config.json",
        workdir.data: "data",
        workdir.checkpoints("edge"): "checkpoints/edge",
        workdir.teachers("edge"): "teachers/edge",
        workdir.before: "before",
        workdir.history(): "history.jsonl",
        workdir.history(2): "history.2.jsonl",
        workdir.tensorboard(): "tensorboard",
        workdir.tensorboard(2): "tensorboard/process_2",
        workdir.metrics: "metrics.json",
        workdir.timings: "timings.json",
        workdir.runs: "runs.json",
        workdir.point_cloud(80): "point_cloud/iteration_80/point_cloud.ply",
        workdir.cameras: "cameras.json",
        workdir.results: "results.json",
        workdir.per_view: "per_view.json",
        workdir.test(80): "test/ours_80",
        workdir.mesh: "mesh/mesh.ply",
        workdir.mesh_choices: "mesh/mesh.json",
        workdir.mesh_error: "mesh/error.ply",
        workdir.truth_error: "mesh/completeness.ply",
        workdir.error_scale: "mesh/error.json",
        workdir.export: "export",
        workdir.renders: "renders",
        workdir.report: "report.html",
    }
    assert {str(path.relative_to(tmp_path)): name for path, name in expected.items()} == {
        name: name for name in expected.values()
    }
    assert str(workdir) == str(tmp_path)


def test_a_run_has_begun_with_its_first_whole_checkpoint(tmp_path):
    workdir = Workdir(tmp_path)
    assert not workdir.has_begun()
    (workdir.checkpoints("edge") / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not workdir.has_begun() and not workdir.has_begun("edge")
    (workdir.checkpoints("edge") / "20").mkdir()
    assert workdir.has_begun() and workdir.has_begun("edge") and not workdir.has_begun("device")


def test_a_run_is_complete_with_its_last_file(tmp_path):
    workdir = Workdir(tmp_path)
    for path in (workdir.point_cloud(80), workdir.metrics, workdir.cameras):
        assert not workdir.is_complete(80)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert workdir.is_complete(80) and not workdir.is_complete(90)


def test_curves_of_processes_are_in_the_order_of_their_numbers(tmp_path):
    workdir = Workdir(tmp_path)
    for process in (10, 2, 0):
        workdir.history(process).write_text("")
    (tmp_path / "history.old.jsonl").write_text("")
    assert list(workdir.histories()) == [0, 2, 10]
    assert workdir.histories()[10] == workdir.history(10)


def test_the_newest_test_pictures_are_of_the_most_steps(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.newest_test() is None
    for step in (9, 80):
        (workdir.test(step) / RENDERS).mkdir(parents=True)
    workdir.test(100).mkdir()  # without renders
    (tmp_path / "test" / "ours_x" / RENDERS).mkdir(parents=True)
    assert workdir.newest_test() == workdir.test(80)


def test_stages_stand_where_they_first_stood(tmp_path):
    workdir = Workdir(tmp_path)
    for name, steps in (("device", 1), ("cloud", 2), ("device", 3)):
        workdir.write_stage(name, steps=steps)
    assert json.loads(workdir.metrics.read_text())["stages"] == [
        {"name": "device", "steps": 3},
        {"name": "cloud", "steps": 2},
    ]
    note_seconds(workdir, "mesh", 2.0)
    note_seconds(workdir, "evaluate", 1.0)
    note_seconds(workdir, "mesh", 3.0)
    assert read_timings(workdir) == {"mesh": 3.0, "evaluate": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "stages": 3}',
        '{"format": 1, "stages": [3]}',
        '{"format": 1, "stages": [{"name": "device"}, {"steps": 4}]}',
        '{"format": 1, "stages": [{"name": ["device"]}]}',
        '{"format": 1, "stages": [{"name": "device", "depth_step_rest": "0.1"}]}',
    ],
)
def test_metrics_of_another_form_are_refused(tmp_path, content):
    workdir = Workdir(tmp_path)
    workdir.metrics.write_text(content)
    with pytest.raises(InputError, match="metrics.json: expected a list of stages with names"):
        workdir.write_stage("cloud", steps=2)
    assert workdir.metrics.read_text() == content


@pytest.mark.parametrize("seconds", ['"3"', "[]", "true", "1" + "0" * 400, "1e999"])
def test_times_that_are_none_are_refused(tmp_path, seconds):
    workdir = Workdir(tmp_path)
    workdir.timings.write_text(f'{{"mesh": 1.5, "evaluate": {seconds}}}')
    with pytest.raises(InputError, match="timings.json: expected seconds, got .* for 'evaluate'"):
        note_seconds(workdir, "mesh", 2.0)
