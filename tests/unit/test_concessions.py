"""What a run gives up where its memory would not suffice, with stand-ins for the estimate."""

import dataclasses

import numpy as np
import pytest
from scenes import SMALL, town_folder

from cosurfgs_jax import host_memory, settings_file
from cosurfgs_jax.collab import concessions
from cosurfgs_jax.collab.announcement import Estimate
from cosurfgs_jax.collab.needs import Sizes
from cosurfgs_jax.collab.peaks import Peak
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import (
    DataSettings,
    PartitionSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.settings_file import GivenUp
from cosurfgs_jax.training import kept_place
from cosurfgs_jax.training.course import Course, Span
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.step import StepShape
from cosurfgs_jax.workdir import Workdir

MIB = 2**20
CAPACITY = 8000
ASKED = Settings(surfels=SurfelSettings(capacity=CAPACITY))
GIVES_BACK = "memory: freed memory goes back to the system at once: steps take longer"


class Place(PartitionedScene):
    """Two blocks, which begin with 1,000 and 1,500 surfels where they may have so many."""

    def with_capacity(self, settings):
        """Each has half of them."""
        half = settings.surfels.capacity // 2
        blocks = [
            Block(number, np.arange(5), half, np.arange(count), min(half, count), 1.0)
            for number, count in enumerate((1000, 1500))
        ]
        return self._replace(blocks=blocks)

    @property
    def counts(self):
        """Of each block: capacity and first surfels."""
        return [(block.capacity, block.num_initial) for block in self.blocks]


def needed(settings: Settings, limit: int) -> Estimate:
    """What stands in for an estimate: photographs are 200 MiB, remembered depths 20, arrays that
    grow 30, surfels 400, all else 100.
    """
    spans = [Span(1, slots, slots, StepShape(True, True, 1)) for slots in (1, 2)]
    num_mib = 100 + min(settings.data.host_memory_mb, 200)
    num_mib += 400 * settings.surfels.capacity / CAPACITY
    num_mib += 20 * settings.loss.remember_depth
    if settings.density.growth_factor == 1.5:
        num_mib += 30
    else:
        spans = spans[1:]
    return Estimate(
        course=Course(spans, 0),
        sizes=Sizes(*np.ones(len(Sizes._fields), int))._replace(photo_bytes=200 * MIB),
        host=Peak(round(num_mib * MIB), "training"),
        device=Peak(0, "training"),
        host_limit=limit * MIB,
        device_limit=None,
        is_device_memory=True,
    )


@pytest.fixture
def make_do(tmp_path, monkeypatch):
    """(limit in MiB, settings) -> settings, place and what is given up by `make_do`."""
    layout = make_layout(np.zeros(2, int), 1)
    monkeypatch.setattr(host_memory, "give_back_at_once", lambda: None)

    def run(limit, settings=ASKED):
        monkeypatch.setattr(concessions, "estimate", lambda now, *_: needed(now, limit))
        place = Place(*[None] * 4, []).with_capacity(settings)
        now, given_up = concessions.make_do(settings, Workdir(tmp_path), place, layout)
        return now.settings, now.partitioned, given_up

    return run


def names(given_up) -> list[str]:
    return [row.name for row in given_up]


def begin(workdir: Workdir) -> None:
    (workdir.checkpoints("device") / "5").mkdir(parents=True)


def test_what_fits_stays_as_it_is(make_do, tmp_path, caplog):
    settings, place, given_up = make_do(750)
    assert settings is ASKED and not given_up and not caplog.messages
    assert place.counts == [(4000, 1000), (4000, 1500)]
    concessions.note(given_up, Workdir(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_never_changes_a_model_goes_first_and_is_not_noted(make_do, caplog):
    settings, _, given_up = make_do(749)
    assert settings.data.host_memory_mb == 100 and not given_up
    first, line = caplog.messages
    assert first == GIVES_BACK
    assert "data.host_memory_mb=100 instead of 4096" in line and "make_do=false" in line
    assert "750 MiB of 749 MiB with the old value, 650 MiB of 749 MiB with the new" in line


def test_detail_stays_while_the_estimate_may_be_too_high(make_do):
    # Without photographs, growth and remembered depths it is 564 MiB.
    settings, _, given_up = make_do(540)
    assert settings.data.host_memory_mb == 64 and settings.surfels.capacity == CAPACITY
    assert names(given_up) == ["density.growth_factor", "loss.remember_depth"]


def test_surfels_go_last_and_by_no_more_than_needed(make_do, caplog):
    settings, place, given_up = make_do(485)
    # 485 / 1.15 = 421: of 400 MiB of surfels five eighths may stay, 250.
    assert given_up[-1] == GivenUp("surfels.capacity", CAPACITY, 5000)
    assert settings.surfels.capacity == 5000 and "less detail" in caplog.messages[-1]
    assert place.counts == [(2500, 1000), (2500, 1500)]


@pytest.mark.parametrize("capacity, least", [(16_000, 4000), (8000, 3000), (3500, 3062)])
def test_surfels_go_down_to_a_quarter_and_not_below_the_points(make_do, capacity, least):
    asked = Settings(surfels=SurfelSettings(capacity=capacity))
    settings, place, _ = make_do(50, asked)
    assert settings.surfels.capacity == least
    assert [block.num_initial for block in place.blocks] == [1000, 1500]


def test_it_may_be_forbidden_before_a_run_has_begun(make_do, tmp_path, caplog):
    settings = dataclasses.replace(ASKED, train=TrainSettings(make_do=False))
    assert make_do(100, settings)[0] is settings and not caplog.messages
    concessions.note([GivenUp("surfels.capacity", CAPACITY, 5000)], Workdir(tmp_path))
    begin(Workdir(tmp_path))
    assert make_do(100, settings)[0].surfels.capacity == 5000


def test_a_run_goes_on_with_what_it_began_with(make_do, tmp_path):
    workdir = Workdir(tmp_path)
    first, place, given_up = make_do(485)
    concessions.note(given_up, workdir)
    begin(workdir)
    for limit in (10_000, 485, 100):  # a larger machine, the same, a smaller one
        again, same, noted = make_do(limit)
        assert noted == given_up and same.counts == place.counts
        assert again.surfels == first.surfels and again.density == first.density
        assert again.loss == first.loss
        assert again.data.host_memory_mb == (4096 if limit == 10_000 else 64)


def test_what_fits_by_what_it_has_given_up_still_gives_freed_memory_back(make_do, tmp_path, caplog):
    concessions.note(make_do(485)[2], Workdir(tmp_path))
    begin(Workdir(tmp_path))
    caplog.clear()
    # 550 MiB of 600, of which the run wanted 750.
    settings, _, _ = make_do(600)
    assert GIVES_BACK in caplog.messages and settings.data.host_memory_mb == 100


def test_before_a_step_is_saved_it_is_decided_anew(make_do, tmp_path):
    workdir = Workdir(tmp_path)
    concessions.note(make_do(485)[2], workdir)
    settings, _, given_up = make_do(10_000)
    assert settings is ASKED and not given_up
    concessions.note(given_up, workdir)
    assert not workdir.given_up.exists()


def test_blocks_of_their_own_jobs_keep_their_settings(make_do, tmp_path):
    block = Workdir(tmp_path).block(1)
    block.root.mkdir(parents=True)
    assert make_do(300)[2], "a job that has saved nothing binds nobody"
    begin(block)
    settings, _, given_up = make_do(300)
    assert settings.data.host_memory_mb == 64 and not given_up
    assert settings.surfels == ASKED.surfels and settings.loss == ASKED.loss


@pytest.mark.parametrize(
    "content",
    [
        '{"rows": []}',
        '{"settings": [{"name": "surfels.capacity"}]}',
        '{"settings": [{"name": "surfels.size", "asked": 1, "used": 2}]}',
        '{"settings": [{"name": "surfels.capacity", "asked": 1, "used": "many"}]}',
        '{"settings": [{"name": "surfels", "asked": 1, "used": 2}]}',
        '{"settings": [{"name": ["surfels.capacity"], "asked": 1, "used": 2}]}',
        '{"settings": [{"name": null, "asked": 1, "used": 2}]}',
    ],
)
def test_a_damaged_note_is_a_sentence(tmp_path, content):
    workdir = Workdir(tmp_path)
    workdir.given_up.write_text(content)
    with pytest.raises(InputError, match=r"given_up.json: expected settings with the values"):
        settings_file.read_given_up(workdir)


def test_fewer_surfels_start_from_the_same_points(tmp_path):
    settings = Settings(
        data=DataSettings(path=str(town_folder(SMALL))),
        partition=PartitionSettings(num_blocks=3, min_views=1, min_points=1),
    )
    fewer = dataclasses.replace(settings, surfels=SurfelSettings(capacity=900))
    workdir = Workdir(tmp_path / "run")
    expected = kept_place.open_place(fewer, workdir).blocks
    read = kept_place.open_place(settings, workdir, keeps=True)
    kept = kept_place.open_place(settings, workdir)
    assert kept.kept_in is not None, "its points are by cells"
    for place in (read, kept):
        blocks = place.with_capacity(fewer).blocks
        for block, old, other in zip(blocks, place.blocks, expected, strict=True):
            assert (block.capacity, block.num_initial) == (other.capacity, other.num_initial)
            assert block.points is old.points and block.num_initial < old.num_initial
