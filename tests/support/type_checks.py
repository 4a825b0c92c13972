"""The checker that tests run on every call of the package (see conftest.py)."""

from collections.abc import Callable

import beartype

_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """beartype, where an int passes for a float; constructors are not checked.

    JAX rebuilds pytrees through their constructors, with leaves of any kind: axes, shardings,
    shapes, None."""
    return function if function.__name__ == "__init__" else _check(function)
