"""Reports of steps: fetched together they give the log that they gave one by one, and the host runs
ahead only so far.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cosurfgs_jax.distributed.layout import make_layout, sharded
from cosurfgs_jax.distributed.packing import Packed
from cosurfgs_jax.errors import BadLossError
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import loop, step_reports
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.dispatch import DispatchLimit, programs_ahead
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Log, Progress, read_history
from cosurfgs_jax.training.schedule import ViewOrder
from cosurfgs_jax.training.step import StepReport
from cosurfgs_jax.training.step_reports import (
    RecentReports,
    fetch_parcels,
    mean_numbers,
    numbers_of,
)
from cosurfgs_jax.workdir import Workdir


def report_of(
    step: int, block: int, has_geometry: bool, loss: float | None = None, num_invalid: int = 0
) -> StepReport:
    """Numbers that tell steps and blocks apart, with bits in their last places."""
    random = np.random.default_rng([step, block])
    numbers = random.uniform(0, 1, 7).astype(np.float32)
    shown = {"psnr/train": 20 + numbers[1]}
    if has_geometry:
        shown |= {"geometry/single_view": numbers[2], "seen_in_neighbor": numbers[3]}
    return StepReport(
        numbers[0] if loss is None else np.float32(loss),
        np.int32(100 * step + block),
        np.int32(num_invalid),
        shown,
    )


def packed(layout, step: int, has_geometry: bool, **changes) -> list[Packed]:
    """As a compiled step gives them."""
    run = sharded(Packed.pack, layout)
    return [
        run(
            layout.put_row(
                row,
                lambda block: report_of(
                    step, 99 if block is None else block, has_geometry, **changes
                ),
            )
        )
        for row in range(layout.blocks_per_device)
    ]


@pytest.mark.parametrize("num_blocks, num_devices", [(1, 1), (4, 4), (5, 3)])
def test_one_fetch_gives_every_report_to_its_block(num_blocks, num_devices):
    layout = make_layout(np.zeros(num_blocks, np.int64), num_devices)
    steps = [packed(layout, step, has_geometry=step >= 2) for step in range(4)]
    fetched = fetch_parcels(layout, steps)
    assert [list(blocks) for blocks in fetched] == [list(range(num_blocks))] * 4
    for step, blocks in enumerate(fetched):
        for block, got in blocks.items():
            expected = report_of(step, block, step >= 2)
            jax.tree.map(np.testing.assert_array_equal, got, expected)
            assert ("seen_in_neighbor" in got.shown) == (step >= 2)


def log_only(log: Log) -> Run:
    """A context of which no more than the log is used."""
    return Run(None, None, None, None, None, None, log)


def test_the_lines_are_those_of_reports_read_one_by_one(tmp_path, monkeypatch):
    layout = make_layout(np.zeros(3, np.int64), 2)
    recent = RecentReports(layout)
    expected = []
    fetches = []
    open_on_devices = sharded(lambda parcel: parcel.open(), layout)
    monkeypatch.setattr(
        step_reports,
        "fetch_parcels",
        lambda *arguments: fetches.append(1) or fetch_parcels(*arguments),
    )
    with Log(Workdir(tmp_path)) as log, Progress("device", 12) as progress:
        log.begin("device", 0)
        one_by_one = {block: [] for block in range(3)}
        for step in range(1, 13):
            rows = packed(layout, step, has_geometry=step > 4)
            for block, report in layout.get_blocks(
                [open_on_devices(parcel) for parcel in rows]
            ).items():
                one_by_one[block].append(numbers_of(report))
                last = report
            recent.add(rows)
            if step % 6 == 0:
                loop._write_log(
                    log_only(log),
                    loop.StageState("device", [], step, 0, 0.0),
                    recent.take(),
                    progress,
                )
                for block, numbers in one_by_one.items():
                    expected.append(
                        {
                            "stage": "device",
                            "step": step,
                            "block": block,
                            "surfels": 100 * step + block,
                            **mean_numbers(numbers),
                        }
                    )
                one_by_one = {block: [] for block in range(3)}
    assert len(fetches) == 2 and last.num_alive == 1202
    rows = read_history(Workdir(tmp_path))
    assert rows == expected
    assert rows[0]["geometry/single_view"] == np.mean(
        [report_of(step, 0, True).shown["geometry/single_view"] for step in (5, 6)],
        dtype=np.float64,
    )
    assert rows[3]["loss"] == np.mean(
        [report_of(step, 0, True).loss for step in range(7, 13)], dtype=np.float64
    )


def test_surfels_that_are_skipped_are_told(tmp_path, capsys):
    layout = make_layout(np.zeros(1, np.int64), 1)
    with Log(Workdir(tmp_path)) as log, Progress("device", 12) as progress:
        stage = loop.StageState("device", [], 2, 0, 0.0)
        recent = RecentReports(layout)
        recent.add(packed(layout, 1, False, num_invalid=5))
        recent.add(packed(layout, 2, False, num_invalid=3))
        loop._write_log(log_only(log), stage, recent.take(), progress)
        assert (
            "block 0: 3 surfels with values that are not finite are skipped"
            in capsys.readouterr().err
        )


class _Saved(Checkpoints):
    """Checkpoints of a stage that were written."""

    def __init__(self, *steps: int):
        self._steps = steps

    def wait(self) -> None:
        """Nothing is under way."""

    def steps(self) -> list[int]:
        return list(self._steps)


@pytest.mark.parametrize(
    ("saved", "bad", "step", "words"),
    [
        ((20, 40), np.nan, 43, "is nan at step 43, .* the last good checkpoint .*/device/40. If"),
        ((), np.inf, 45, "is inf at step 45, .*there is no checkpoint .*: .* begins it anew. If"),
    ],
)
def test_a_bad_loss_names_step_photograph_and_checkpoint(tmp_path, saved, bad, step, words):
    """Also between two lines of the log: what follows from it must not be saved."""
    layout = make_layout(np.zeros(1, np.int64), 1)
    views = np.arange(3, 9)
    names = [f"photo_{view}.jpg" for view in range(9)]
    scene = SimpleNamespace(image_names=names)
    block = Block(0, views, 10, np.arange(10), 10, 1.0)
    partitioned = PartitionedScene(scene, None, None, None, [block])
    settings = Settings(seed=5)
    run = Run(settings, Workdir(tmp_path), partitioned, layout, None, None, None)
    recent = RecentReports(layout)
    for number in range(41, 46):
        loss = 0.5
        if number in (step, 45):
            loss = bad
        recent.add(packed(layout, number, False, loss=loss))
    stage = loop.StageState("device", [], 45, 0, 0.0)
    shown = names[ViewOrder(views, 5, 0).view(step - 1)]
    with pytest.raises(BadLossError, match=words) as error:
        loop._check_losses(run, stage, recent.peek(), _Saved(*saved), view_of=loop._even_order(run))
    assert f"whose photograph is {shown};" in str(error.value)
    with pytest.raises(BadLossError, match="whose photograph is photo_8.jpg;"):
        loop._check_losses(
            run, stage, recent.peek(), _Saved(*saved), view_of=lambda block, before: 8
        )
    assert len(recent.take()) == 5, "peeking leaves the reports for the next line"


def test_reports_do_not_pile_up_on_the_devices(monkeypatch):
    monkeypatch.setattr(step_reports, "_MAX_KEPT", 3)
    layout = make_layout(np.zeros(1, np.int64), 1)
    recent = RecentReports(layout)
    kept = []
    for step in range(8):
        recent.add(packed(layout, step, False))
        kept.append(len(recent._on_devices))
    assert max(kept) < 3
    assert [int(blocks[0].num_alive) for blocks in recent.take()] == [
        100 * step for step in range(8)
    ]
    assert recent.take() == []


class _Running:
    """Something that a program gives: it notes that it was waited for."""

    def __init__(self, number: int, waited: list[int]):
        self._number = number
        self._waited = waited

    def block_until_ready(self) -> "_Running":
        """As arrays have it."""
        self._waited.append(self._number)
        return self


@pytest.mark.parametrize("num_ahead", [0, 1, 2])
def test_the_host_waits_for_what_was_launched_so_many_programs_ago(num_ahead):
    waited: list[int] = []
    pace = DispatchLimit(num_ahead)
    for number in range(6):
        pace.launched({"report": _Running(number, waited)})
        assert waited == list(range(max(0, number + 1 - num_ahead)))


def test_on_a_cpu_every_program_is_waited_for():
    assert programs_ahead(make_layout(np.zeros(2, np.int64), 2)) == 0


def test_a_photograph_of_which_nothing_counts_has_no_psnr():
    """Lines are means over the others; none is written where there are no others."""
    nothing = report_of(1, 0, False)._replace(shown={"psnr/train": np.float32(np.nan)})
    something = report_of(2, 0, False)
    assert "psnr/train" not in mean_numbers([numbers_of(nothing)])
    means = mean_numbers([numbers_of(nothing), numbers_of(something)])
    assert means["psnr/train"] == float(something.shown["psnr/train"]) and np.isfinite(
        means["loss"]
    )
