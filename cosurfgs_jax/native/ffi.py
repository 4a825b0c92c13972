"""The bridge to the native libraries, one per platform: the only file that touches `jax.ffi`.

A library is loaded and its targets are registered at the first call, so importing the package costs
nothing and works where the library is missing. A target has the same name, operands and results on
every platform that has it."""

import ctypes
import functools
import importlib.metadata
import importlib.resources
from pathlib import Path

import jax
import numpy as np
from jax.extend.backend import get_backend
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from cosurfgs_jax.errors import InputError

Result = tuple[tuple[int, ...], DTypeLike]  # of a target: shape and dtype

_CPU_TARGETS = {
    "cosurfgs_raster_forward": "CosurfgsRasterForward",
    "cosurfgs_raster_backward": "CosurfgsRasterBackward",
    "cosurfgs_raster_removal": "CosurfgsRasterRemoval",
    "cosurfgs_photometric_losses": "CosurfgsPhotometricLosses",
    "cosurfgs_plane_depth": "CosurfgsPlaneDepth",
    "cosurfgs_plane_depth_backward": "CosurfgsPlaneDepthBackward",
    "cosurfgs_geometric_losses": "CosurfgsGeometricLosses",
    "cosurfgs_adam": "CosurfgsAdam",
    "cosurfgs_adam_catch_up": "CosurfgsAdamCatchUp",
}
# What is not here runs as plain JAX on GPUs, where XLA fuses it well (see `has_native`).
_CUDA_TARGETS = {
    "cosurfgs_raster_forward": "CosurfgsCudaRasterForward",
    "cosurfgs_raster_backward": "CosurfgsCudaRasterBackward",
    "cosurfgs_raster_removal": "CosurfgsCudaRasterRemoval",
    "cosurfgs_photometric_losses": "CosurfgsCudaPhotometricLosses",
    "cosurfgs_adam": "CosurfgsCudaAdam",
}
_CPU_LIBRARY = "libcosurfgs_cpu.so"
_TARGETS = {"cpu": _CPU_TARGETS, "cuda": _CUDA_TARGETS}  # by the backend that has them


def _library_path(name: str) -> Path:
    """Where the installation keeps a library, also when Python took the package from a source
    folder that it stands in.
    """
    try:
        folder = importlib.metadata.distribution("cosurfgs_jax").locate_file("cosurfgs_jax")
    except importlib.metadata.PackageNotFoundError:
        folder = importlib.resources.files("cosurfgs_jax")
    return Path(str(folder / "lib" / name))


def _load(file_name: str, targets: dict[str, str], platform: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_library_path(file_name)))
    for name, symbol in targets.items():
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(getattr(library, symbol)), platform=platform
        )
    return library


def cpu_library_path() -> Path:
    """The file of the native CPU library; it may be missing."""
    return _library_path(_CPU_LIBRARY)


@functools.cache
def load_cpu_library() -> ctypes.CDLL:
    """The native CPU library, loaded and its targets registered at the first call.

    Raises:
        OSError, AttributeError: it is missing, or was built from other sources.
    """
    return _load(_CPU_LIBRARY, _CPU_TARGETS, "cpu")


@functools.cache
def load_cuda_library() -> ctypes.CDLL:
    """The native CUDA library, loaded and its targets registered at the first call; a driver is not
    needed for that.

    Raises:
        OSError, AttributeError: it is missing, or was built from other sources.
    """
    return _load("libcosurfgs_cuda.so", _CUDA_TARGETS, "CUDA")


@functools.cache
def why_no_cpu_library() -> str:
    """Why the native CPU library cannot be used; empty if it can."""
    try:
        load_cpu_library()
    except (OSError, AttributeError) as error:
        return (
            f"the native CPU library cannot be loaded ({error}); reinstall with a C++17 "
            "compiler present: pip install ."
        )
    return ""


def cuda_code(capability: str, machine_code: list[str], ptx: list[str]) -> str:
    """What a GPU runs of a CUDA library.

    Args:
        capability: the GPU's compute capability as JAX says it, e.g. "8.6".
        machine_code, ptx: what the library holds, as _build_info.py says it: "86" for 8.6.
    Returns:
        "machine code" if there is some of the same generation that is not newer; else "PTX" if
        there is some that is not newer, which the driver compiles; else "".
    Source: CUDA C++ programming guide, binary and PTX compatibility.
    """
    major, minor = (int(number) for number in capability.split("."))
    if any(divmod(int(code), 10)[0] == major and int(code) % 10 <= minor for code in machine_code):
        return "machine code"
    return "PTX" if any(int(code) <= 10 * major + minor for code in ptx) else ""


def cuda_problem(devices: tuple[int, ...] = ()) -> str:
    """Why GPUs cannot run the native CUDA library; empty if they can.

    Args:
        devices: numbers of GPUs as CUDA counts them; empty: all of this machine. A GPU that is
            asked gets a context, which takes some of its memory, so those of other processes are
            better left out.
    Raises:
        OSError, AttributeError: see `load_cuda_library`.
    """
    function = load_cuda_library().cosurfgs_cuda_problem
    function.restype = ctypes.c_char_p
    return function(
        (ctypes.c_int32 * len(devices))(*devices), ctypes.c_int32(len(devices))
    ).decode()


@functools.cache
def why_no_cuda_library() -> str:
    """Why the native CUDA library cannot be used; empty if it can."""
    if not is_cuda():
        return (
            f"JAX computes on {jax.default_backend()} here; on a machine with an NVIDIA GPU, pip "
            "install "
            '"cosurfgs_jax[cuda13]" or "cosurfgs_jax[cuda12]"'
        )
    try:
        problem = cuda_problem(tuple(device.local_hardware_id for device in jax.local_devices()))
    except (OSError, AttributeError) as error:
        return (
            f"the native CUDA library cannot be loaded ({error}); reinstall with nvcc 12 or 13 on "
            "the PATH: "
            "COSURFGS_CUDA=ON pip install ."
        )
    return f"the native CUDA library cannot run: {problem}" if problem else ""


def is_cuda() -> bool:
    """Whether JAX computes on NVIDIA GPUs; of the others it says "gpu", too."""
    return jax.default_backend() == "gpu" and "cuda" in get_backend().platform_version.lower()


def has_native(target: str, *operands: jax.Array) -> bool:
    """Whether a native target can take these: float32, on a platform whose library is there and has
    it.
    """
    if any(operand.dtype != np.float32 for operand in operands):
        return False
    if is_cuda():
        return target in _CUDA_TARGETS and not why_no_cuda_library()
    return jax.default_backend() == "cpu" and target in _CPU_TARGETS and not why_no_cpu_library()


def choose_native(what: str, target: str, backend: str | None, *operands: jax.Array) -> bool:
    """Whether a function that has a native target beside its plain definition calls it.

    Args:
        what: the function, for messages, e.g. "Adam".
        target: its target.
        backend: "cpu" or "cuda" (the target there), "reference" (the plain definition), or None:
            the target where it can run.
        *operands: what it computes from.
    Raises:
        InputError: an unknown backend, or one that is not there.
    """
    if backend is None:
        return has_native(target, *operands)
    known = [name for name, targets in _TARGETS.items() if target in targets]
    if backend not in (*known, "reference"):
        listed = ", ".join(f'"{name}"' for name in known)
        raise InputError(
            f'backend: expected None, {listed} or "reference" for {what}, got {backend!r}'
        )
    if backend == "reference":
        return False
    why_not = why_no_cuda_library() if backend == "cuda" else why_no_cpu_library()
    if not why_not and backend == "cpu" and (is_cuda() or jax.default_backend() != "cpu"):
        why_not = "JAX does not compute on the CPU here"
    if why_not:
        raise InputError(f'backend: "{backend}" was asked for, but {why_not}')
    return True


def cpu_instruction_set() -> str:
    """Which compiled variant of the kernels this machine runs, e.g. "x86-64-v3"."""
    function = load_cpu_library().cosurfgs_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def _varying_axes(x) -> frozenset:
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def match_varying(*operands):
    """Operands that all vary over the same mesh axes (inside shard_map). Call it outside a
    custom_vjp: the transpose of the cast is the sum of the cotangents over the axes."""
    axes = frozenset().union(*(_varying_axes(x) for x in operands))

    def cast(x):
        missing = axes - _varying_axes(x)
        if not missing:
            return x
        return jax.lax.pcast(x, tuple(missing), to="varying")

    return tuple(cast(x) for x in operands)


def result_like(reference, shape, dtype) -> jax.ShapeDtypeStruct:
    """The type of a result that varies over the same mesh axes as the reference (inside
    shard_map).
    """
    kind = jax.typeof(reference)
    if not kind.manual_axis_type.varying:
        return jax.ShapeDtypeStruct(shape, dtype)
    return jax.ShapeDtypeStruct(
        shape,
        dtype,
        sharding=NamedSharding(kind.sharding.mesh, PartitionSpec()),
        manual_axis_type=kind.manual_axis_type,
    )


def _attribute(value):
    if isinstance(value, float):
        return np.float32(value)
    if type(value) is int:
        return np.int64(value)
    return value


def call(
    target: str,
    results: list[Result],
    *operands,
    in_place: dict[int, int] | None = None,
    **attributes,
):
    """Calls a native target.

    Args:
        target: a registered name.
        results: shape and dtype of each result.
        *operands: arrays that vary over the same mesh axes (see `match_varying`).
        in_place: which operand's memory becomes that of which result; XLA copies where the operand
            is needed afterwards.
        **attributes: int -> int64, float -> float32, bool and str as they are.
    Returns:
        A tuple of arrays.
    """
    if is_cuda():
        load_cuda_library()
    else:
        load_cpu_library()
    shapes = tuple(result_like(operands[0], shape, dtype) for shape, dtype in results)
    static = {name: _attribute(value) for name, value in attributes.items()}
    function = jax.ffi.ffi_call(
        target, shapes, vmap_method="sequential", input_output_aliases=in_place
    )
    return tuple(function(*operands, **static))
