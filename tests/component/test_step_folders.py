"""Steps are found by their folders, whatever orbax has noted of them."""

import jax
import numpy as np
import pytest

from cosurfgs_jax.training.checkpoints import Checkpoints


@pytest.mark.parametrize("is_read_only", [True, False])
def test_a_step_whose_notes_of_orbax_are_damaged_is_read(tmp_path, is_read_only):
    """When it was saved is in them, and nobody asks."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (20, 30):
            checkpoints.save(step, {"means": np.full(3, step, np.float32)}, {})
    for step, text in ((20, '"a text"'), (30, '{"commit_timestamp_nsecs": [7]}')):
        (tmp_path / str(step) / "_CHECKPOINT_METADATA").write_text(text)
    shapes = {"means": jax.ShapeDtypeStruct((3,), np.float32)}
    with Checkpoints(tmp_path, is_read_only=is_read_only) as checkpoints:
        assert checkpoints.steps() == [20, 30]
        assert np.asarray(checkpoints.restore_latest(lambda _: shapes).state["means"])[0] == 30
        (tmp_path / "30" / "checksums.json").write_text("[" * 100_000)
        assert checkpoints.restore_latest(lambda _: shapes).step == 20
        assert checkpoints.steps() == ([20, 30] if is_read_only else [20])
