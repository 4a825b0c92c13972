"""The folder of a run: where its files lie, and metrics.json."""

from pathlib import Path

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError

FORMAT = 1  # of metrics.json


def read_metrics(path: str | Path) -> dict:
    """The content of metrics.json; without a file, that of an empty one.

    Raises:
        InputError: a file of another format.
    """
    path = Path(path)
    content = {"format": FORMAT, "stages": [], "final": None, "geometry": None}
    if path.exists():
        old = files.read_json(path)
        if not isinstance(old, dict) or old.get("format") != FORMAT:
            found = old.get("format") if isinstance(old, dict) else old
            raise InputError(f"{path}: expected format {FORMAT}, got {found!r}; move the file away")
        content |= old
        kinds = {"stages": list, "final": dict | None, "geometry": dict | None}
        wrong = [name for name, kind in kinds.items() if not isinstance(content[name], kind)]
        if wrong or not all(isinstance(stage, dict) for stage in content["stages"]):
            raise InputError(
                f"{path}: expected a list of stages and objects as final and geometry, got another "
                f"{wrong[0] if wrong else 'stage'}; move the file away"
            )
    return content


def merge_metrics(path: str | Path, **parts) -> dict:
    """Updates metrics.json: parts that are given replace the old ones, the others stay.

    Args:
        path: of metrics.json; it is made if missing.
        **parts: "stages" (list), "final" (dict), "geometry" (dict or None); see `final_part`.
    Returns:
        The content as written.
    Raises:
        InputError: an unknown part, or a file of another format.
    """
    unknown = set(parts) - {"stages", "final", "geometry"}
    if unknown:
        raise InputError(
            f"metrics.json: expected the parts stages, final, geometry, got {sorted(unknown)}"
        )
    content = read_metrics(path) | parts
    files.write_json(path, content)
    return content
