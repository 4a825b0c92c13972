"""The importance scores by name (config.lmc.score). A new one is a file and a line here."""

from cosurfgs_jax.collab import removal_score, weight_score
from cosurfgs_jax.collab.importance_score import ImportanceScore
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import LmcSettings

SCORES: dict[str, ImportanceScore] = {
    "removal": removal_score.SCORE,
    "weight": weight_score.SCORE,
}


def score_of(settings: LmcSettings) -> ImportanceScore:
    """The score that the settings name.

    Raises:
        InputError: there is none of this name.
    """
    if settings.score not in SCORES:
        raise InputError(
            f"config.lmc.score: expected {' or '.join(SCORES)}, got {settings.score!r}"
        )
    return SCORES[settings.score]
