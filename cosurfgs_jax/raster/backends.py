"""The backends of the rasterizer, and which of them is used.

A backend is a module of this folder with a function `render_views(static, surfels, camera,
background, probe)` that returns the `RawMaps` of one view or of V (see `drawing.make_renderer`),
and one line in `BACKENDS`. It may have a function `removal_effects(static, surfels, camera,
background)` like that of `reference_removal`."""

import functools
import importlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import RasterSettings

_log = logging.getLogger(__name__)

# Of processor time, measured: docs/performance.md.
PORTABLE_COST = "about 5 times the work of the native CPU kernel, and on one core"


def _why_no_cpu() -> str:
    why_not = ffi.why_no_cpu_library()
    if not why_not and jax.default_backend() != "cpu":
        why_not = (
            f"JAX computes on {jax.default_backend()} here, and this kernel is for the CPU; "
            "JAX_PLATFORMS=cpu makes it so"
        )
    return why_not


def _why_no_cuda() -> str:
    return ffi.why_no_cuda_library()


def _why_no_tpu() -> str:
    device = jax.default_backend()
    if device == "tpu":
        return ""
    return f"JAX computes on {device} here, and this kernel is for TPUs"


def _always_there() -> str:
    return ""


class Backend(NamedTuple):
    """One way to draw surfels."""

    why_not: Callable[[], str]  # why it cannot be used here; "" if it can
    module: str  # of this folder; loaded at the first draw, as Pallas takes half a second
    is_definition: bool = False  # nothing of a draw is left to native kernels


BACKENDS = {
    "cpu": Backend(_why_no_cpu, "native"),
    "cuda": Backend(_why_no_cuda, "native"),
    "tpu": Backend(_why_no_tpu, "pallas_tpu"),
    "portable": Backend(_always_there, "portable"),
    "reference": Backend(_always_there, "reference_backend", is_definition=True),
}


def why_not(name: str) -> str:
    """Why a backend cannot be used here; empty if it can."""
    return BACKENDS[name].why_not()


def available_backends() -> dict[str, str]:
    """Every backend with "" if it can be used here, else the reason why not."""
    return {name: why_not(name) for name in BACKENDS}


def load_renderer(name: str) -> Callable:
    """The `render_views` of a backend."""
    return importlib.import_module(f"{__package__}.{BACKENDS[name].module}").render_views


def load_removal_effects(name: str) -> Callable | None:
    """The `removal_effects` of a backend; None where it has none."""
    module = importlib.import_module(f"{__package__}.{BACKENDS[name].module}")
    return getattr(module, "removal_effects", None)


def portable_cost() -> str:
    """What the portable rasterizer costs on this platform, in words."""
    return PORTABLE_COST if jax.default_backend() == "cpu" else "slower than a native kernel"


@functools.cache
def _warn_portable(reason: str) -> None:
    _log.warning(
        "Surfels are drawn by the portable rasterizer, in plain JAX, %s: %s",
        portable_cost(),
        reason,
    )


def native_backend() -> str:
    """The native backend of the platform that JAX computes on, whether or not it can be
    used here.
    """
    return "cuda" if ffi.is_cuda() else "cpu"


def best_backend() -> str:
    """The backend that is used where none is named. On TPUs that is "portable", as "tpu" has never
    run on one.
    """
    return "portable" if why_not(native_backend()) else native_backend()


def choose_backend(backend: str | None) -> str:
    """The backend that `rasterize` uses for this name.

    Args:
        backend: one of `BACKENDS`; None or "" = the native one of the platform that JAX computes
            on, or "portable" where that cannot be used; a warning then says why, once.
    Raises:
        InputError: an unknown name, or a backend that cannot be used here, with the reason.
    """
    if not backend:
        backend = best_backend()
        if backend == "portable":
            _warn_portable(why_not(native_backend()))
    if backend not in BACKENDS:
        raise InputError(
            f"rasterize: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    reason = why_not(backend)
    if reason:
        raise InputError(f"rasterize: backend {backend!r} is not available: {reason}")
    return backend


def backend_of(settings: RasterSettings) -> str:
    """The backend that the settings name, or the best for the device where they name none.

    Raises:
        InputError: an unknown name, or a backend that cannot be used here, with the reason.
    """
    if settings.backend not in ("", *BACKENDS):
        raise InputError(
            f"config.raster.backend: expected one of {', '.join(BACKENDS)}, or nothing, got "
            f"{settings.backend!r}"
        )
    return choose_backend(settings.backend)
