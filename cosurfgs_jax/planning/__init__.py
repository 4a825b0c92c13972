"""What a run will need, before it runs: its programs are compiled and timed, and counted. And how
long it takes by its first steps.
"""

from cosurfgs_jax.planning.first_estimate import FirstEstimate
from cosurfgs_jax.planning.forecast import Forecast, make_forecast
from cosurfgs_jax.planning.remedies import Remedy, find_remedies
from cosurfgs_jax.planning.text import lines_of, to_json
from cosurfgs_jax.planning.trials import timed

__all__ = [
    "FirstEstimate",
    "Forecast",
    "Remedy",
    "find_remedies",
    "lines_of",
    "make_forecast",
    "timed",
    "to_json",
]
