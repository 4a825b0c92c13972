"""What lies on disk for a distillation stage: read as it was written, or refused with its path."""

from types import SimpleNamespace

import numpy as np
import pytest
from blocks_case import four_blocks, run_context

from cosurfgs_jax.collab import mas_stages
from cosurfgs_jax.collab.teachers import Teachers
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.inputs import TeacherMaps
from cosurfgs_jax.training.loop import StageState
from cosurfgs_jax.workdir import Workdir

MAPS = TeacherMaps(
    color=np.full((4, 6, 3), 7, np.uint8),
    flags=np.ones((4, 6), np.uint8),
    depth=np.full((4, 6), 2, np.float32),
    plane_depth=np.zeros((4, 6), np.float32),
    normal=np.full((4, 6, 3), -3, np.int8),
)


def _write(folder, **changes):
    path = folder / "teachers" / "cloud" / "0001" / "000012.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        **{name: array for name, array in (MAPS._asdict() | changes).items() if array is not None},
    )
    return path


def test_maps_are_read_as_they_were_written(tmp_path):
    _write(tmp_path)
    got = Teachers(SimpleNamespace(workdir=Workdir(tmp_path)), "cloud").load(1, 12)
    for name, array in MAPS._asdict().items():
        np.testing.assert_array_equal(getattr(got, name), array, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": None},
        {"depth": np.zeros((4, 6))},
        {"normal": np.zeros((4, 6), np.int8)},
        {"flags": np.zeros((4, 5), np.uint8)},
        {"depth": np.zeros(6, np.float32)},
        {"color": np.array([{}], object)},
    ],
)
def test_other_maps_are_refused_with_their_path(tmp_path, changes):
    _write(tmp_path, **changes)
    with pytest.raises(InputError, match=r"0001/000012\.npz: expected .*delete it"):
        Teachers(SimpleNamespace(workdir=Workdir(tmp_path)), "cloud").load(1, 12)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.6, 0.99])
def test_files_that_are_cut_off_are_refused_with_their_path(tmp_path, fraction):
    path = _write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match=r"0001/000012\.npz: .*damaged.*delete it"):
        Teachers(SimpleNamespace(workdir=Workdir(tmp_path)), "cloud").load(1, 12)


@pytest.mark.parametrize(
    "step, words", [(None, "no checkpoint"), (20, "step 20 of them"), (40, "")]
)
def test_models_from_before_compression_that_are_gone_are_named(tmp_path, monkeypatch, step, words):
    """An earlier step, where the last one is damaged, is no teacher."""

    def restore(run, name, checkpoints, parts):
        assert checkpoints._is_read_only, "it is another stage's"
        assert not parts.training, "moments are not drawn"
        return StageState(name, [], step, 0, 0.0)

    if step:
        monkeypatch.setattr(mas_stages.loop, "restore_stage", restore)
    with run_context(four_blocks(), tmp_path, 4) as run:
        models = mas_stages.TeacherModels(None, "edge", 40)
        if not words:
            assert mas_stages._unpruned(run, models).step == 40
            return
        with pytest.raises(InputError, match=f"edge: expected the models.* step 40, got {words}"):
            mas_stages._unpruned(run, models)
