"""metrics.json and timings.json of a workdir: their form, checked as they are read."""

from pathlib import Path
from typing import Any

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError

METRICS_FORMAT = 1
_KINDS = {"stages": list, "final": dict | None, "geometry": dict | None}
PARTS = tuple(_KINDS)


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of metrics.json; without a file, that of an empty one.

    Raises:
        InputError: a damaged file, or one of another format.
    """
    empty = {"stages": [], "final": None, "geometry": None}
    content: dict[str, Any] = {"format": METRICS_FORMAT, **empty}
    if not path.exists():
        return content
    old = files.read_json(path)
    if not isinstance(old, dict) or old.get("format") != METRICS_FORMAT:
        found = old.get("format") if isinstance(old, dict) else old
        raise InputError(
            f"{path}: expected format {METRICS_FORMAT}, got {found!r:.80}; move the file away"
        )
    content |= old
    wrong = [name for name, kind in _KINDS.items() if not isinstance(content[name], kind)]
    if not wrong and not all(map(_is_stage, content["stages"])):
        wrong = ["stage"]
    if wrong:
        raise InputError(
            f"{path}: expected a list of stages with names and numbers, and objects as final and "
            f"geometry, got another {wrong[0]}; move the file away"
        )
    return content


def read_timings(path: Path) -> dict[str, float]:
    """Name -> seconds of what was done after training, of timings.json; empty without a file.

    Raises:
        InputError: a damaged file.
    """
    content = files.read_json_object(path) if path.exists() else {}
    for name, seconds in content.items():
        if not files.is_finite(seconds):
            raise InputError(
                f"{path}: expected seconds, got {seconds!r:.80} for {name!r:.80}; delete the file: "
                "it has nothing but times"
            )
    return content


def _is_stage(value: Any) -> bool:
    """Whether it is a stage of metrics.json: later ones are compared with its depth at seams."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    depth = [item for key, item in value.items() if key.startswith("depth_")]
    return all(item is None or files.is_finite(item) for item in depth)
