"""How the programs of tests are compiled: quickly, unless a test needs what users get."""

import jax

# For programs in processes of their own.
QUICK_ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

_is_quick = False


def compile_from_now_on(is_quick: bool) -> None:
    """Programs that are compiled after this are compiled without XLA's optimizer, or as for users,
    which takes longer.
    """
    global _is_quick
    if is_quick is not _is_quick:
        _is_quick = is_quick
        jax.config.update("jax_disable_most_optimizations", is_quick)
        jax.clear_caches()  # else a program that was compiled in another way would be used again
