"""Refuses a new run in a folder that holds photographs or a dataset: `--workdir=photos`."""

from pathlib import Path

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.workdir import Workdir

_DATASET = ("images", "sparse", "transforms.json", ".prepare")  # as `prepare` and others name them


def refuse_foreign(workdir: Workdir) -> None:
    """Checks that a run that begins does not spread its files among those of the user.

    A folder with the settings or the plan of a run, or with its blocks, is that run's, whatever
    else is in it.

    Args:
        workdir: of the run; it may be missing.
    Raises:
        InputError: its folder has photographs or a dataset in it, and no run.
    """
    folder = workdir.root
    if not folder.is_dir() or workdir.config.exists() or workdir.plan.exists():
        return
    if workdir.blocks():
        return
    found = _foreign_words(folder)
    if found:
        raise InputError(
            f"--workdir={folder}: expected a new folder or that of a run, got one with {found}; "
            f"give another one, such as --workdir=runs/{folder.name}"
        )


def _foreign_words(folder: Path) -> str:
    from cosurfgs_jax.data.lookup import IMAGE_ENDINGS  # loads JAX, which most calls do without

    names = sorted(path.name for path in folder.iterdir())
    dataset = [name for name in _DATASET if name in names]
    if dataset:
        return f"a dataset in it ({', '.join(dataset)})"
    photographs = [name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
    if photographs:
        return f"pictures in it ({len(photographs)}, the first is {photographs[0]})"
    return ""
