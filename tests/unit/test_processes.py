"""What processes of one run must have in common, with the other processes replaced."""

import numpy as np
import pytest

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings


@pytest.fixture
def other_differs(monkeypatch):
    """A run of three processes, of which process 2 has another value in one place."""

    def gather(value):
        value = np.asarray(value)
        other = value.copy()
        other.reshape(-1)[-1] += 1
        return np.stack([value, value, other])

    monkeypatch.setattr(processes, "gather", gather)


def test_settings_that_differ_are_named(other_differs):
    with pytest.raises(
        InputError, match=r"config\.geo\.epsg: differs between processes: .* in pro"
    ):
        processes.check_settings_agree(Settings())


def test_a_text_that_differs_is_named(other_differs):
    with pytest.raises(
        InputError, match="the dataset: differs between processes: .* process 2; do"
    ):
        processes.check_equal("the dataset", "a", "do this")


def test_equal_settings_pass(monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda value: np.stack([np.asarray(value)] * 3))
    processes.check_settings_agree(Settings())
    processes.check_equal("the dataset", "a", "do this")
