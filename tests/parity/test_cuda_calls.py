"""What the real CUDA calls do with memory, errors and GPUs, run on the host behind a stand-in for
XLA (emulated_calls.py).
"""

import ctypes

import jax
import numpy as np
import pytest
import raster_cases as cases
from emulated_calls import assert_same
from test_removal import by_kernel

CALL_ERRORS = (
    jax.errors.JaxRuntimeError,
    ValueError,
)  # the latter where JAX waits for the call when it dispatches it


def _calls(case):
    """The calls of a case as functions without arguments that return what they compute. The
    backward call either reads what the forward call has left or, alone, projects and bins again."""
    cotangents = cases.random_cotangents(case, np.ones(case.image_size, bool))
    return {
        "forward": lambda: cases.kernel_maps("emulation", case),
        "backward": lambda: cases.kernel_gradients("emulation", case, cotangents),
        "backward_alone": lambda: cases.kernel_gradients("emulation_alone", case, cotangents),
        "removal": lambda: by_kernel(case, "emulated_raster"),
    }


CALLS = {
    "forward": 8,
    "backward": 4,
    "backward_alone": 8,
    "removal": 8,
}  # and more pieces of memory, and launches, than this


@pytest.mark.parametrize("offset", [0, 16])
def test_scratch_memory_is_asked_for_as_xla_allows_and_aligned(emulation, offset):
    """XLA refuses to be asked for more than 16, and the kernels need 256: also where XLA's memory
    is only aligned to 16. The emulation calls it a fault where scratch memory is not aligned."""
    case = cases.build("one_tile")
    wanted = {name: call() for name, call in _calls(case).items()}
    knobs = emulation(address_offset=offset)
    for name, call in _calls(case).items():
        assert_same(call(), wanted[name])
        assert knobs.allocations and knobs.largest_alignment == 16


def test_a_refusal_is_not_called_want_of_memory(emulation):
    emulation(max_alignment=8)
    with pytest.raises(
        CALL_ERRORS, match="INTERNAL: rasterize: XLA refused.*Unsupported alignment: 16"
    ):
        _calls(cases.build("one_tile"))["forward"]()


def _failures(emulation, call, knob, counter, least):
    """The error of a call for each of the pieces of memory it asks for, or of its launches, when
    that one fails.

    There must be more of them than `least`."""
    knobs = emulation()
    wanted = call()
    count = getattr(knobs, counter)
    for index in range(count):
        emulation(**{knob: index})
        with pytest.raises(CALL_ERRORS) as error:
            call()
        # An error of the call, not the emulation's: nothing was launched afterwards, and all memory
        # was given back.
        yield str(error.value), knobs, index
    emulation()
    assert_same(call(), wanted)  # the next call works
    assert count == getattr(knobs, counter) > least


@pytest.mark.parametrize("name", CALLS)
def test_without_scratch_memory_calls_say_how_much_they_wanted(emulation, name):
    call = _calls(cases.build("one_tile"))[name]
    for message, knobs, _ in _failures(
        emulation, call, "failing_allocation", "allocations", CALLS[name]
    ):
        assert (
            f"RESOURCE_EXHAUSTED: rasterize: the GPU has no {knobs.refused_bytes} bytes left"
            in message
        )
        assert "Out of memory while trying to allocate" in message, "XLA's own words"


@pytest.mark.parametrize("name", CALLS)
def test_a_failing_launch_ends_the_call(emulation, name):
    call = _calls(cases.build("one_tile"))[name]
    for message, knobs, index in _failures(
        emulation, call, "failing_launch", "launches", CALLS[name]
    ):
        assert "INTERNAL: rasterize: CUDA: unspecified launch failure" in message
        assert knobs.launches == index + 1


def _problem(library, capabilities, asked=(), needed=80):
    """What cosurfgs_cuda_problem says of `asked` of a machine's GPUs, and that it leaves the
    present one as it was.
    """
    library.emulation_set_gpus(
        (ctypes.c_int32 * len(capabilities))(*capabilities), len(capabilities), needed, 1
    )
    function = library.cosurfgs_cuda_problem
    function.restype = ctypes.c_char_p
    text = function((ctypes.c_int32 * len(asked))(*asked), len(asked)).decode()
    assert library.emulation_present_gpu() == 1
    return text


def test_each_gpu_is_asked_whether_it_has_kernels(library):
    assert _problem(library, [80, 90]) == ""
    old = _problem(library, [80, 90, 75])
    assert (
        "GPU 2 (a played GPU, compute capability 7.5): no kernel image" in old
        and "8.0 (Ampere) or newer" in old
    )
    assert _problem(library, [80, 90, 75], asked=[0, 1]) == ""
    new = _problem(library, [80, 120], needed=121)
    assert "GPU 0 (a played GPU, compute capability 8.0)" in new and "machine code of 8.0" in new
    assert "COSURFGS_CUDA_ARCHITECTURES=80 in" in new
    assert _problem(library, []) == "no CUDA-capable device is detected"
