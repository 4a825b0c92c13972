"""What a run will need, before it runs: its programs are compiled and timed, and counted."""

from cosurfgs_jax.planning.forecast import Forecast, make_forecast
from cosurfgs_jax.planning.remedies import Remedy, find_remedies
from cosurfgs_jax.planning.text import lines_of, to_json
from cosurfgs_jax.planning.trials import timed

__all__ = ["Forecast", "Remedy", "find_remedies", "lines_of", "make_forecast", "timed", "to_json"]
