"""Numbers and durations as the report writes them."""

from typing import Any

DATASET_UNITS = "units of the dataset"


def format_value(value: Any, digits: int = 4) -> str:
    """A number or a text; "" for None."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def format_percent(value: float | None) -> str:
    """A fraction in percent; "" for None."""
    return "" if value is None else f"{value:.3%}"


def format_duration(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
