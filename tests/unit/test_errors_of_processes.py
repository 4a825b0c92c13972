"""What one process of a run meets ends all of them; which one counts is up to the caller."""

import pytest

from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError


def _raised(raise_, own: str) -> str:
    try:
        raise_(InputError(own) if own else None)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("own", ["", "here"])
def test_alone_a_process_raises_its_own(own):
    assert _raised(processes.raise_everywhere, own) == own
    assert _raised(processes.raise_of_any, own) == own


@pytest.mark.parametrize(
    "texts, of_first, of_any",
    [
        (["", "", ""], "", ""),
        (["a", "b", ""], "a", "a"),
        (["", "b", "c"], "", "b"),
        (["", "", "c"], "", "c"),
    ],
)
def test_of_several_the_first_one_or_the_first_that_met_something(
    monkeypatch, texts, of_first, of_any
):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "gather_texts", lambda own: [texts[0], own, texts[2]])
    assert _raised(processes.raise_everywhere, texts[1]) == of_first
    assert _raised(processes.raise_of_any, texts[1]) == of_any
