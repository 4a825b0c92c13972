"""The compiled programs of a run, at their largest shapes: what they hold, and what a step takes.

Ways that were considered: constants alone (cheap; another machine or another version of XLA makes
them wrong); a short run in another folder (exact for what it reaches, but no run is short that has
grown to its full size, and what it holds is only known on devices that keep count); the programs of
the run, compiled for the shapes that its course ends with, and timed with surfels that stand in for
grown ones (chosen).

Times are f64[2] in seconds: by the clock, and of the processor.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from cosurfgs_jax.distributed.layout import SPEC, Layout

_MIN_REPEATS = 3
_MAX_SECONDS = 20.0  # of one measurement


class Program(NamedTuple):
    """A compiled program of all devices."""

    call: Callable
    compile_s: np.ndarray
    num_bytes: int  # that a device holds for it besides its state, while it runs
    text: str  # of the compiled program


def compiled(function: Any, *arguments: Any, held: int, **static: Any) -> Program:
    """Compiles a jitted function of `layout.sharded`.

    Args:
        function: jitted.
        *arguments: arrays or their shapes, with an axis of devices in front.
        held: bytes of them on a device that are counted elsewhere: states and photographs.
        **static: static arguments.
    """
    program, seconds = timed(lambda: function.lower(*arguments, **static).compile())
    memory = program.memory_analysis()
    num_devices = jax.tree.leaves(arguments)[0].shape[0]
    # What a program does not read is no argument of it, but lives all the same.
    given = bytes_of(arguments) // num_devices - held
    made = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(program, seconds, given + made, program.as_text())


def timed(function: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a function gives, and f64[2] what it took; waits for devices."""
    clock = time.perf_counter()
    processor = time.process_time()
    result = function()
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "devices")])
    return result, np.array([time.perf_counter() - clock, time.process_time() - processor])


def mean_time(step: Callable[[int], Any], num_repeats: int) -> np.ndarray:
    """f64[2], the mean over calls of `step(number)`, fewer where they take long."""
    times: list[np.ndarray] = []
    while len(times) < num_repeats:
        times.append(timed(lambda: step(len(times)))[1])
        if len(times) >= _MIN_REPEATS and sum_times(times)[0] > _MAX_SECONDS:
            break
    return np.mean(times, axis=0)


def abstract_row(layout: Layout, tree: Any) -> Any:
    """Shapes and shardings of what `Layout.put` makes of a tree."""
    sharding = NamedSharding(layout.mesh, SPEC)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (layout.num_devices, *leaf.shape), leaf.dtype, sharding=sharding
        ),
        tree,
    )


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def sum_times(times: Sequence[np.ndarray]) -> np.ndarray:
    """f64[2], the sum; zero of none."""
    return np.sum([np.zeros(2), *times], axis=0)
