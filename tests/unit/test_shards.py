"""Parts of outputs: how they are named, what they must have in common, and what merging them
wants.
"""

import numpy as np
import pytest

from cosurfgs_jax import files, locks, run_status
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.extent import Extent
from cosurfgs_jax.outputs.shards import Shards
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.shard_folders import ShardFolders
from cosurfgs_jax.workdir import SCORES, Workdir

MADE_WITH = {"model": "cloud 1", "config.surface.voxel_size": 0.5}


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def _shards(workdir, **changes) -> Shards:
    return Shards(workdir, SCORES, "evaluate", MADE_WITH | changes)


def _make(workdir, text, **changes) -> None:
    with _shards(workdir, **changes).making(Part.parse(text, "--shard")) as shard:
        folder, note = shard
        (folder / "what").write_text(text)
        note["seconds"] = 1.5


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "a/4", "-1/4", "1/4/2", " 0/4", "٣/4"])
def test_no_part(text):
    with pytest.raises(InputError, match="^--shard: expected a part i/n") as caught:
        Part.parse(text, "--shard")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("total", [0, 1, 7, 8, 100])
def test_the_parts_are_all_of_it_in_order_and_alike(total):
    parts = [Part(number, 4).run_of(total) for number in range(4)]
    assert [number for part in parts for number in range(total)[part]] == list(range(total))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert WHOLE.run_of(total) == slice(0, total)


@pytest.mark.parametrize("weights", [[], [3], [1, 1, 1, 1], [9, 1, 1, 1, 9, 1, 0, 2]])
def test_shares_are_all_of_it_in_order_and_of_like_weight(weights):
    shares = [Part(number, 3).share_of(weights) for number in range(3)]
    covered = [number for share in shares for number in range(len(weights))[share]]
    assert covered == list(range(len(weights)))
    most = max((sum(weights[share]) for share in shares), default=0)
    assert most <= sum(weights) / 3 + max(weights, default=0)
    assert WHOLE.share_of(weights) == slice(0, len(weights))


def test_shards_are_collected_in_order_and_then_deleted(workdir, caplog):
    caplog.set_level("INFO")
    assert _shards(workdir).collect() == []
    _make(workdir, "1/2")
    assert "missing shards: 0/2" in caplog.text
    _make(workdir, "0/2")
    assert "all 2 shards are there; `cosurfgs evaluate` without --shard merges" in caplog.text
    found = _shards(workdir).collect()
    assert [(shard.folder / "what").read_text() for shard in found] == ["0/2", "1/2"]
    assert found[1].note == {"seconds": 1.5}
    with _shards(workdir).making(Part(0, 2)) as shard:
        assert shard is None
    assert "shard 0/2 is done already" in caplog.text
    _shards(workdir).delete()
    assert not (workdir.root / "shards").exists() and _shards(workdir).collect() == []


def test_missing_shards_are_named(workdir):
    _make(workdir, "2/4")
    with pytest.raises(
        InputError, match=r"all 4 shards of `evaluate` in .*, got all but 0/4, 1/4, 3/4; run"
    ):
        _shards(workdir).collect()


def test_a_shard_that_failed_is_missing_and_made_anew(workdir):
    with pytest.raises(OSError), _shards(workdir).making(Part(0, 1)) as shard:
        (shard[0] / "half").write_text("")
        raise OSError("full")
    assert _shards(workdir).collect() == []
    _make(workdir, "0/1")
    (shard,) = _shards(workdir).collect()
    assert {path.name for path in shard.folder.iterdir()} == {"what", "shard.json"}


def test_shards_of_something_else_are_named(workdir):
    _make(workdir, "0/2")
    with pytest.raises(
        InputError,
        match=r"0-of-2: expected a shard made with config\.surface\.voxel_size = 0\.25, got one "
        r"with 0\.5; .* delete ",
    ):
        _make(workdir, "1/2", **{"config.surface.voxel_size": 0.25})
    with pytest.raises(InputError, match="model = 'cloud 2', got one with 'cloud 1'"):
        _shards(workdir, model="cloud 2").collect()
    with pytest.raises(InputError, match="expected a shard of 3, got one of 2; go on with that"):
        _make(workdir, "1/3")
    # The only one may be replaced.
    _make(workdir, "0/2", model="cloud 2")
    assert (
        files.read_json(ShardFolders(workdir.root).note("evaluate", Part(0, 2)))["made_with"][
            "model"
        ]
        == "cloud 2"
    )


def test_other_versions_are_a_warning(workdir, caplog):
    _make(workdir, "0/1")
    path = ShardFolders(workdir.root).note("evaluate", Part(0, 1))
    files.write_json(path, files.read_json(path) | {"versions": "an old one"})
    assert len(_shards(workdir).collect()) == 1
    assert "made by an old one, and here is cosurfgs_jax of" in caplog.text


@pytest.mark.parametrize("change", [{"note": {}}, {"note": None}, {"checksum": "x"}])
def test_a_shard_whose_note_is_damaged_is_named_and_made_anew(workdir, change):
    _make(workdir, "0/1")
    path = ShardFolders(workdir.root).note("evaluate", Part(0, 1))
    (before,) = _shards(workdir).collect()
    files.write_json(path, files.read_json(path) | change | {"versions": [3]})
    with pytest.raises(InputError, match="0-of-1: expected shard.json as the shard has written it"):
        _shards(workdir).collect()
    _make(workdir, "0/1")
    assert _shards(workdir).collect() == [before]


def test_one_process_makes_a_shard_and_none_the_whole_meanwhile(workdir):
    with _shards(workdir).making(Part(0, 2)):
        _make(workdir, "1/2")
        with pytest.raises(InputError, match="shard 0/2 is under way there already"):
            _make(workdir, "0/2")
        with (
            pytest.raises(InputError, match="a shard of an evaluation is under way"),
            workdir.writing(SCORES),
        ):
            pass
    with (
        workdir.writing(SCORES),
        pytest.raises(InputError, match="an evaluation is under way"),
    ):
        _make(workdir, "0/2")


def test_the_status_says_which_shards_are_there(workdir):
    run_status.write_plan(workdir, 1, [run_status.PlannedStage("device", 0, True, True)])
    for path in (workdir.point_cloud(0), workdir.metrics, workdir.cameras):
        files.write_text(path, "")
    assert len(run_status.status_lines(workdir)) == 1
    _make(workdir, "1/3")
    with locks.hold(ShardFolders(workdir.root).lock("evaluate", Part(2, 3)), "shard 2/3"):
        lines = run_status.status_lines(workdir)
    assert lines[1] == "evaluate by 3 shards: missing: 0/3, 2/3"
    assert "is at work" in lines[2] or "was killed" in lines[2]  # its own number means the latter
    _make(workdir, "0/3")
    _make(workdir, "2/3")
    assert "all are there, to be merged" in run_status.status_lines(workdir)[1]


def test_an_extent_of_parts_is_that_of_all():
    random = np.random.default_rng(0)
    means = random.normal([5e5, 4e6, 100], [3, 2, 1], (1000, 3))
    log_scales = random.normal(-4, 1, (1000, 2)).astype(np.float32)
    extent = Extent()
    for rows in (slice(0, 0), slice(0, 1), slice(1, 600), slice(600, 1000)):
        extent.add(means[rows], log_scales[rows])
    assert extent.count == 1000 and extent.needs_double
    np.testing.assert_array_equal(extent.low, means.min(axis=0))
    assert extent.spread == pytest.approx(np.sqrt(means.var(axis=0).sum()), rel=1e-9)
    again = Extent.from_dict(files.json.loads(files.to_json(extent.to_dict())))
    assert again.to_dict() == extent.to_dict()
    near = Extent()
    near.add(means - means.mean(axis=0), log_scales)
    assert not near.needs_double
