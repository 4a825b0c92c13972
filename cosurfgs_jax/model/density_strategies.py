"""The density strategies by name (config.density.strategy). A new one is a file and a line here."""

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.model import density, error_growth
from cosurfgs_jax.model.density_strategy import DensityStrategy
from cosurfgs_jax.settings import DensitySettings

STRATEGIES: dict[str, DensityStrategy] = {
    "adaptive": density.STRATEGY,
    "error": error_growth.STRATEGY,
}


def strategy_of(settings: DensitySettings) -> DensityStrategy:
    """The strategy that the settings name.

    Raises:
        InputError: there is none of this name.
    """
    if settings.strategy not in STRATEGIES:
        raise InputError(
            f"config.density.strategy: expected {' or '.join(STRATEGIES)}, got "
            f"{settings.strategy!r}"
        )
    return STRATEGIES[settings.strategy]
