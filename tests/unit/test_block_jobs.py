"""Jobs of some blocks: what they are asked for, and what they must agree on."""

import contextlib
import dataclasses
import json
import shutil

import PIL.Image
import pytest
from blocks_case import TOWN, four_blocks, run_context
from scenes import town_folder

from cosurfgs_jax import locks, settings_file
from cosurfgs_jax.collab import adopted_blocks, block_jobs, open_run, pipeline
from cosurfgs_jax.collab.block_choice import BlockChoice
from cosurfgs_jax.collab.stages import total_steps
from cosurfgs_jax.distributed.run_lock import hold_run
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.run_status import status_lines
from cosurfgs_jax.settings import (
    DataSettings,
    MaskSettings,
    OptimSettings,
    PartitionSettings,
    Settings,
    TrainSettings,
)
from cosurfgs_jax.training.partitioned_scene import bind_partition, open_partitioned_scene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.workdir import BLOCK, TRAINING, Workdir


@pytest.fixture
def settings():
    return Settings(
        data=DataSettings(path=str(town_folder(TOWN))),
        train=TrainSettings(steps=20),
        partition=PartitionSettings(num_blocks=4, num_edges=2, min_views=1, min_points=1),
    )


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def _save_step(workdir: Workdir, stage: str, step: int) -> None:
    """A folder stands for a checkpoint."""
    (workdir.checkpoints(stage) / str(step)).mkdir(parents=True)


@pytest.mark.parametrize(
    "text, num_blocks, expected",
    [
        ("2", 3, [2]),
        ("3,0", 4, [0, 3]),
        ("0/1", 3, [0, 1, 2]),
        ("1/4", 10, [1, 5, 9]),
        ("7/8", 5, []),
    ],
)
def test_a_choice_of_blocks(text, num_blocks, expected):
    assert BlockChoice.parse(text).of(num_blocks) == expected


def test_parts_share_all_blocks():
    parts = [BlockChoice.parse(f"{part}/3").of(11) for part in range(3)]
    assert sorted(sum(parts, [])) == list(range(11))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "-1",
        "1,",
        "1,,2",
        "0-3",
        "1/",
        "/4",
        "4/4",
        "0/0",
        "1/2/3",
        "1,1",
        " 1",
        "٣",
        "1" * 10,
    ],
)
def test_no_choice_of_blocks(text):
    with pytest.raises(InputError, match="^--blocks: expected ") as caught:
        BlockChoice.parse(text)
    assert repr(text) in str(caught.value)


def test_there_is_no_such_block():
    with pytest.raises(InputError, match=r"from 0 to 3, .* 4 block\(s\) .* got '1,4'"):
        BlockChoice.parse("1,4").of(4)


@contextlib.contextmanager
def _at_work(settings: Settings, workdir: Workdir, number: int):
    """A job that trains a block."""
    with (
        locks.hold_shared(workdir.lock(TRAINING.name)),
        workdir.block(number).writing(BLOCK),
    ):
        block_jobs.bind_settings(settings, workdir, [number])
        yield


def _others(settings: Settings) -> Settings:
    return dataclasses.replace(settings, optim=OptimSettings(quats=0.5))


def test_the_first_job_binds_all_that_run_beside_it(settings, workdir):
    with _at_work(settings, workdir, 1):
        with pytest.raises(InputError, match="config.optim.quats: .*blocks/1 was made with .* 0.5"):
            block_jobs.bind_settings(_others(settings), workdir, [2])
        free = dataclasses.replace(settings, train=TrainSettings(steps=20, log_every=3))
        block_jobs.bind_settings(free, workdir, [2])
    assert settings_file.load(workdir.config) == settings
    assert settings_file.load(workdir.block(1).config) == settings
    assert settings_file.load(workdir.block(2).made_with).train.log_every == 3


def test_a_job_that_saved_nothing_binds_nobody_afterwards(settings, workdir):
    with _at_work(settings, workdir, 1):
        pass
    other = _others(settings)
    workdir.given_up.write_text("of a run that was stopped before its first saved step")
    block_jobs.bind_settings(other, workdir, [2])
    assert settings_file.load(workdir.config) == other and not workdir.given_up.exists()
    _save_step(workdir.block(2), "device", 10)
    with pytest.raises(InputError, match=r"config.optim.quats: .*blocks/2 was made with 0.5"):
        block_jobs.bind_settings(settings, workdir, [1])
    with pytest.raises(InputError, match="config.optim.quats"):
        settings_file.check_fits(settings, workdir)
    settings_file.check_fits(other, workdir)


def test_two_jobs_of_one_block(settings, workdir):
    with (
        _at_work(settings, workdir, 1),
        pytest.raises(InputError, match="blocks/1: the training of this block is under way") as got,
    ):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("1"))
    assert "process" in str(got.value) and "\n" not in str(got.value)


def test_jobs_and_a_run_of_all_blocks_shut_each_other_out(settings, workdir):
    with (
        _at_work(settings, workdir, 1),
        _at_work(settings, workdir, 3),
        pytest.raises(InputError, match="train the blocks 1, 3 there now; wait"),
        hold_run(workdir),
    ):
        pass
    assert workdir.blocks_at_work() == []
    workdir.lock(TRAINING.name).write_text('{"pid": 1, "host": "there", "since": "long ago"}')
    with (
        locks.hold_shared(workdir.lock(TRAINING.name)),  # a job that opens its dataset
        pytest.raises(InputError, match="a job that trains single blocks is under way") as got,
        hold_run(workdir),
    ):
        pass
    assert "long ago" not in str(got.value), "a run that was killed"
    with (
        hold_run(workdir),
        pytest.raises(InputError, match="a training run is under way there already"),
    ):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("1"))


def test_blocks_that_are_trained_together_are_not_trained_alone(settings, workdir):
    for stage in ("lmc_device", "device"):
        _save_step(workdir, stage, 4)
        with pytest.raises(InputError, match=f"of all blocks together in .*/{stage}; go on"):
            block_jobs.train_blocks(settings, workdir, BlockChoice.parse("0/4"))


def test_with_masks_blocks_depend_on_each_other(settings, workdir):
    masked = dataclasses.replace(settings, mask=MaskSettings(weight=0.01))
    with pytest.raises(InputError, match="config.mask.weight: expected 0 .* got 0.01"):
        block_jobs.train_blocks(masked, workdir, BlockChoice.parse("1"))


def test_how_far_the_blocks_are(settings, workdir):
    num_recovery = round(settings.lmc.recovery * 20)
    for number, stage, step in [
        (0, "device", 20),
        (0, "lmc_device", num_recovery),
        (1, "device", 10),
        (1, "device", 15),
        (2, "device", 20),
        (2, "lmc_device", 1),
    ]:
        _save_step(workdir.block(number), stage, step)
    assert block_jobs.describe_blocks(settings, workdir, four_blocks()) == (
        f"blocks finished: 0; missing: 1 (device, step 15 of 20), "
        f"2 (lmc_device, step 1 of {num_recovery}), 3 (not begun)"
    )


@pytest.fixture
def run(settings, workdir):
    with run_context(four_blocks(), workdir.root, 4, settings) as context:
        yield context


def _finish(run: Run, number: int) -> None:
    steps = {"device": 20, "lmc_device": round(run.settings.lmc.recovery * 20)}
    for stage, step in steps.items():
        _save_step(run.workdir.block(number), stage, step)


def test_a_run_adopts_blocks_unless_it_has_begun_without_them(run):
    assert not adopted_blocks.adopts_blocks(run)
    _finish(run, 0)
    assert adopted_blocks.adopts_blocks(run)
    _save_step(run.workdir, "device", 10)
    assert not adopted_blocks.adopts_blocks(run), "it trains all of them, further than the blocks"
    for number in (1, 2, 3):
        _finish(run, number)
    assert adopted_blocks.adopts_blocks(run), "it was stopped between two stages of the blocks"


def test_a_run_trains_the_blocks_that_are_missing(run, monkeypatch):
    calls = []
    monkeypatch.setattr(
        adopted_blocks, "take_through", lambda run, numbers: calls.append(list(numbers))
    )
    for number in (0, 2):
        _finish(run, number)
    monkeypatch.setattr(adopted_blocks.processes, "count", lambda: 2)
    with pytest.raises(InputError, match=r"finished: 0, 2; missing: .* by --blocks=1,3$"):
        adopted_blocks.finish_blocks(run)
    monkeypatch.undo()
    monkeypatch.setattr(
        adopted_blocks, "take_through", lambda run, numbers: calls.append(list(numbers))
    )
    adopted_blocks.finish_blocks(run)
    assert calls == [[1, 3]]
    assert settings_file.load(run.workdir.block(3).config) == run.settings
    for number in (1, 3):
        _finish(run, number)
    adopted_blocks.finish_blocks(run)
    assert calls == [[1, 3]], "nothing is missing"


@pytest.fixture
def trained(monkeypatch):
    """Names of the blocks and stages that are trained, by a stand-in that saves the last step."""
    done = []

    def run_one_stage(run, plans, spec, before):
        done.append((run.workdir.root.name, spec.name))
        _save_step(run.workdir, spec.name, spec.num_steps(run.settings))
        return None, True

    monkeypatch.setattr(block_jobs, "run_one_stage", run_one_stage)
    return done


@pytest.fixture
def copied(settings, tmp_path):
    """A copy of the town, of which photographs may be deleted, and its settings."""
    shutil.copytree(town_folder(TOWN), tmp_path / "copy")
    data = DataSettings(path=str(tmp_path / "copy"))
    return sorted((tmp_path / "copy" / "images").iterdir()), dataclasses.replace(
        settings, data=data
    )


def test_a_photograph_that_nobody_has_is_left_out_by_all(copied, workdir, trained, caplog):
    """As in a run of one process, whose blocks they are."""
    photographs, settings = copied
    photographs[3].unlink()
    for number in range(4):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse(str(number)))
    assert [number for number, stage in trained if stage == "device"] == list("0123")
    assert "1 of 16 photographs are not there and are left out" in caplog.text
    photographs[5].unlink()  # later: the views stay those of the jobs
    rest = open_run.open_in_all_processes(settings, workdir)
    assert rest.scene.left_out == (photographs[3].name,) and rest.scene.num_views == 15
    bind_partition(rest, workdir)
    shutil.rmtree(workdir.root)
    shutil.copyfile(photographs[0], photographs[3])
    shutil.copyfile(photographs[0], photographs[5])
    assert not open_run.open_for_some_blocks(settings, workdir).scene.left_out, "nobody is bound"


def test_a_machine_with_a_part_of_the_photographs_leaves_none_out(copied, workdir, trained):
    """Which the others then do not, either: the views are the same for all."""
    photographs, settings = copied
    own = {int(view) for view in four_blocks().blocks[2].views}
    home = four_blocks().partition.home
    own |= {int(view) for view in four_blocks().scene.test_views if home[view] == 2}
    deleted = [photographs[view] for view in range(16) if view not in own]
    assert len(deleted) > 2
    for path in deleted:
        path.unlink()
    block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    for path in deleted[1:]:
        shutil.copyfile(photographs[min(own)], path)
    scene = open_run.open_for_some_blocks(settings, workdir).scene
    assert scene.num_views == 16 and scene.image_paths.count("") == 1 and not scene.left_out


def test_all_jobs_have_masks_or_none(copied, workdir, trained):
    """A machine may have no photograph with a mask; the arrays of all blocks have one form."""
    photographs, settings = copied
    masks = photographs[0].parents[1] / "masks"
    masks.mkdir()
    PIL.Image.new("L", (TOWN.width, TOWN.height), 255).save(masks / photographs[1].name)
    block_jobs.train_blocks(settings, workdir, BlockChoice.parse("1"))
    shutil.rmtree(masks)
    assert open_run.open_for_some_blocks(settings, workdir).scene.has_masks
    assert open_run.open_in_all_processes(settings, workdir).scene.has_masks
    table = json.loads(workdir.partition.read_text())
    workdir.partition.write_text(json.dumps(table | {"has_masks": False}))
    assert not open_run.open_for_some_blocks(settings, workdir).scene.has_masks
    masks.mkdir()
    PIL.Image.new("L", (TOWN.width, TOWN.height), 255).save(masks / photographs[1].name)
    with pytest.raises(InputError, match="expected photographs without masks, as the first job"):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    workdir.partition.write_text(json.dumps(table | {"left_out": 3}))
    with pytest.raises(InputError, match="partition.json: expected a list as left_out .* got 3"):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))


def test_jobs_that_have_saved_nothing_must_have_the_same_blocks(settings, workdir):
    cut = dataclasses.replace(settings.partition, num_blocks=2, num_edges=1)
    other = open_partitioned_scene(dataclasses.replace(settings, partition=cut), workdir)
    with _at_work(settings, workdir, 1):
        bind_partition(other, workdir)
        with pytest.raises(InputError, match=r"partition.json: expected the partition of this run"):
            block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))


def test_a_finished_run_without_a_plan_gets_it(settings, workdir):
    """It may be of an earlier version."""
    for path in (workdir.metrics, workdir.cameras):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    num_steps = total_steps(settings, four_blocks().partition)
    workdir.point_cloud(num_steps).parent.mkdir(parents=True)
    workdir.point_cloud(num_steps).write_text("")
    pipeline.train(settings, workdir)
    (line,) = status_lines(workdir)
    assert f"finished, {num_steps} steps" in line


def test_a_run_holds_the_blocks_that_it_trains(run, monkeypatch):
    """As a job of its own does: others see it, and what a killed job was writing is deleted."""
    _finish(run, 0)
    left = run.workdir.block(1).checkpoints("device") / "30.orbax-checkpoint-tmp-5"
    left.mkdir(parents=True)
    seen = []
    monkeypatch.setattr(
        adopted_blocks,
        "take_through",
        lambda run, numbers: seen.append((run.workdir.blocks_at_work(), left.exists())),
    )
    adopted_blocks.finish_blocks(run)
    assert seen == [([1, 2, 3], False)] and run.workdir.blocks_at_work() == []


def test_a_job_reads_the_photographs_of_its_blocks_alone(settings, workdir, tmp_path, monkeypatch):
    """Those of the others are missing; where its own are, it says so before it begins."""
    copy = tmp_path / "own"
    shutil.copytree(town_folder(TOWN), copy)
    partitioned = four_blocks()
    scene = partitioned.scene
    own = set(partitioned.blocks[2].views.tolist())
    own |= {int(view) for view in scene.test_views if partitioned.partition.home[view] == 2}
    for view in set(range(scene.num_views)) - own:
        (copy / "images" / scene.image_names[view]).unlink()
    done = []
    monkeypatch.setattr(
        block_jobs, "run_one_stage", lambda run, plans, spec, before: done.append(spec) or (None, 1)
    )
    settings = dataclasses.replace(settings, data=DataSettings(path=str(copy)))
    block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2"))
    assert [spec.name for spec in done] == ["device", "lmc_device"]
    done.clear()
    with pytest.raises(InputError, match=r"here blocks 3\), got some that are not there"):
        block_jobs.train_blocks(settings, workdir, BlockChoice.parse("2,3"))
    assert not done
