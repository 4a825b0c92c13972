"""What orbax leaves behind where a restore or save has failed stays off the terminal."""

import asyncio
import resource
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.training import late_ends
from cosurfgs_jax.training.checkpoints import Checkpoints


def test_reads_that_end_after_a_failed_restore_print_nothing(monkeypatch):
    """They end in threads of their own, at any time; other errors are reported as ever."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    before = sys.unraisablehook
    with late_ends.dropped():
        assert sys.unraisablehook != before
    assert sys.unraisablehook == before, "nothing is left behind where all went well"
    with pytest.raises(ValueError, match="damaged"), late_ends.dropped():
        raise ValueError("damaged")
    filtered = sys.unraisablehook
    with pytest.raises(ValueError, match="again"), late_ends.dropped():
        raise ValueError("again")
    assert sys.unraisablehook is filtered, "one filter is enough"
    late = ["Event loop is closed", "Encountered error while reading array index: (slice(0, 2),)"]
    for message in [*late, "another", ""]:
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(message)))
    assert [str(unraisable.exc_value) for unraisable in reported] == ["another", ""]


def test_a_save_that_ends_well_leaves_the_filter_of_a_failed_restore(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", print)
    report_again = late_ends.drop()
    with pytest.raises(ValueError, match="damaged"), late_ends.dropped():
        raise ValueError("damaged")
    filtered = sys.unraisablehook
    report_again()
    assert sys.unraisablehook is filtered is not print


def late_write():
    """What ends an array's write, as orbax leaves it where the one of another has failed: a task
    waits for it in an event loop that is closed."""
    promise, future = tensorstore.Promise.new()

    async def write():
        await future

    async def give_up():
        asyncio.gather(write())
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up())
    loop.close()
    return lambda: promise.set_result(None)


def test_writes_that_end_after_a_failed_save_print_nothing(tmp_path, monkeypatch):
    """They may end before the failure is known, or after; other errors are reported as ever."""
    reported = []

    def report(unraisable):
        reported.append(str(unraisable.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", report)
    late_write()()
    assert reported == ["Event loop is closed"], "the stand-in is none"
    reported.clear()
    values = jnp.asarray(np.random.default_rng(0).standard_normal(1 << 14), jnp.float32)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"x": values}, {})
        checkpoints.wait()
        assert sys.unraisablehook is report, "nothing is left behind where all went well"
        checkpoints.save(2, {"x": values}, {})
    assert sys.unraisablehook is report, "closed without a word, all went well, too"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
        try:
            with pytest.raises(InputError, match=r"could not be written \(File too large\)"):
                checkpoints.save(3, {"x": values}, {})
                late_write()()
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        late_write()()
    late_write()()
    assert not reported
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("another")))
    assert reported == ["another"]
