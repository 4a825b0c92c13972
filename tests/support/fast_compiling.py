"""How the programs of tests are compiled: quickly, unless a test needs what users get."""

import enum

import jax
from jax._src import compiler


class Compiling(enum.Enum):
    """From the quickest way to that of users, which takes four times as long."""

    QUICK = enum.auto()  # without XLA's optimizer, and with OPTIONS
    FUSED = enum.auto()  # without the optimizer, but operations are fused and rounded as for users
    OPTIMIZED = enum.auto()


# Of XLA's two ways to write the loops of fused operations the older one, and all of a program as
# one module of LLVM: this takes half of the time.
OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
# The same for programs in processes of their own.
QUICK_ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items()),
}

_compiling = Compiling.OPTIMIZED
_options_of_jax = compiler.get_compile_options


def _get_compile_options(*arguments, **options):
    """What JAX gives to XLA. It has no setting for options of XLA that may change after its
    start.
    """
    result = _options_of_jax(*arguments, **options)
    if _compiling is Compiling.QUICK:
        result.env_option_overrides = [*result.env_option_overrides, *OPTIONS.items()]
    return result


compiler.get_compile_options = _get_compile_options


def compile_from_now_on(compiling: Compiling) -> None:
    """Programs that are compiled after this are compiled in this way."""
    global _compiling
    if compiling is not _compiling:
        _compiling = compiling
        jax.config.update("jax_disable_most_optimizations", compiling is not Compiling.OPTIMIZED)
        jax.clear_caches()  # else a program that was compiled in another way would be used again
