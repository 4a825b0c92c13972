"""Settings to and from flat names and `config.json`, and what may change between two runs on one
workdir. No JAX here.
"""

import copy
import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import Settings, declaration_of, type_of
from cosurfgs_jax.workdir import Workdir

# Settings that the programs after training use, and that never change the trained model. The data
# may move: its content is checked (`training.saved_meta.check_identity`).
OF_OUTPUTS = (
    "data.host_memory_mb",
    "data.path",
    "surface.",
    "geo.",
    "points.",
    "terrain.",
    "texture.",
)
# To them come those of how a run is logged, saved, cached and carried.
FREE_TO_CHANGE = (
    *OF_OUTPUTS,
    "train.make_do",
    "train.checkpoint_every",
    "train.keep_moments",
    "train.log_every",
    "train.test_every",
    "data.device_memory_mb",
    "mesh.",
)
# A trained model may be rendered on another machine, with another backend.
FREE_AFTER_TRAINING = (*FREE_TO_CHANGE, "raster.backend")

# No setting means anything beyond these, unless it is declared with a `largest` of its own.
# Learning rates, lengths, weights and fractions are far below them.
_LARGEST_NUMBER = 1e6
_LARGEST_COUNT = 2**31 - 1

_FORMAT = 1  # of the whole workdir; raised when an older version could not go on with it
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _declared(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Dotted name, field and value of every setting below a dataclass instance."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(type_of(field)):
            yield from _declared(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def leaves(settings: Any) -> Iterator[tuple[str, type, Any]]:
    """Dotted name, type and value of every setting below a dataclass instance."""
    for name, field, value in _declared(settings):
        yield name, type_of(field), value


def value_of(settings: Settings, name: str) -> Any:
    """The value of one setting by its dotted name."""
    check_name(name)
    return functools.reduce(getattr, name.split("."), settings)


def kind_words(kind: type) -> str:
    """What a setting of this type takes, in words."""
    return _KINDS.get(kind, getattr(kind, "__name__", str(kind)))


def check_name(name: str) -> None:
    """Refuses a dotted name that is no setting, and names the near ones.

    Raises:
        InputError: unknown name, or the name of a group.
    """
    names = [leaf for leaf, _, _ in leaves(Settings())]
    if name in names:
        return
    below = [leaf for leaf in names if leaf.startswith(f"{name}.")]
    if below:
        raise InputError(
            f"config.{name}: expected one setting, got a group; set config.{below[0]} or another "
            f"of its {len(below)} settings"
        )
    near = _near_names(name, names)
    hint = "--helpfull lists all settings"
    if near:
        hint = f"did you mean {' or '.join(f'config.{leaf}' for leaf in near)}?"
    raise InputError(
        f"config.{name}: no such setting; {hint} (in a config.json: one of another version? Delete "
        "the line)"
    )


def _near_names(name: str, names: list[str]) -> list[str]:
    """At most three settings that may be meant: of the same last part first, then of like names."""
    last = name.rsplit(".", 1)[-1]
    same_end = [leaf for leaf in names if leaf.rsplit(".", 1)[-1] == last]
    alike = [leaf for leaf in difflib.get_close_matches(name, names, n=3) if leaf not in same_end]
    return (same_end + alike)[:3]


def names_ending_in(last: str) -> list[str]:
    """The settings whose last part is this, or whose names end in it: `steps`, `train.steps`."""
    names = [name for name, _, _ in leaves(Settings())]
    return [name for name in names if f".{name}".endswith(f".{last}")]


def set_value(settings: Settings, name: str, value: Any) -> None:
    """Sets one setting by its dotted name; the type is checked by `check`."""
    check_name(name)
    *groups, last = name.split(".")
    holder = settings
    for group in groups:
        holder = getattr(holder, group)
    setattr(holder, last, value)


def with_values(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with other values, by dotted names; the given ones stay as they are."""
    changed = copy.deepcopy(settings)
    for name, value in changes.items():
        set_value(changed, name, value)
    return changed


def check(settings: Settings) -> None:
    """Checks the type of every setting, then its value (`Settings.validate`).

    Raises:
        InputError: names the setting, what was expected and what was got.
    """
    for group in dataclasses.fields(settings):
        part = getattr(settings, group.name)
        kind = type_of(group)
        if dataclasses.is_dataclass(kind) and not isinstance(part, kind):
            raise InputError(f"config.{group.name}: expected {kind.__name__}(...), got {part!r}")
    for name, field, value in _declared(settings):
        _check_kind(name, type_of(field), value)
        _check_range(name, field, value)
    settings.validate()


def _check_kind(name: str, kind: type, value: Any) -> None:
    accepted = kind
    if kind is float:
        accepted = int | float
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    if is_wrong_bool or not isinstance(value, accepted):
        raise InputError(f"config.{name}: expected {kind_words(kind)}, got {value!r}")


def _check_range(name: str, field: dataclasses.Field, value: Any) -> None:
    kind = type_of(field)
    if kind is bool:
        return
    if kind is str:
        if "\0" in value:
            raise InputError(f"config.{name}: expected a text without zero bytes, got {value!r}")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"config.{name}: expected a finite number, got {value!r}")
    largest = declaration_of(field).largest
    if largest is None:
        largest = _LARGEST_NUMBER if kind is float else _LARGEST_COUNT
    if abs(value) > largest:
        raise InputError(
            f"config.{name}: expected {kind_words(kind)} of at most {largest:g}, got "
            f"{repr(value)[:60]}"
        )


def load(path: Path | str) -> Settings:
    """Settings from a `config.json`; settings that it does not name have their defaults.

    Raises:
        InputError: missing or damaged file, unknown setting, wrong type or value.
    """
    content = files.read_json(path)
    settings = Settings()
    found = content.pop("format", _FORMAT) if isinstance(content, dict) else _FORMAT
    if found != _FORMAT:
        raise InputError(
            f"{path}: expected a workdir of format {_FORMAT}, got {found!r}: another version of "
            "cosurfgs_jax wrote it; use that one, or another --workdir"
        )
    try:
        _fill(settings, content, "")
        check(settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return settings


def _fill(settings: Settings, content: Any, prefix: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"config.{prefix[:-1]}: expected an object with settings, got {content!r}")
    groups = {
        field.name for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.type)
    }
    for key, value in content.items():
        if not prefix and key in groups:
            _fill(settings, value, f"{key}.")
        else:
            set_value(settings, prefix + key, value)


def save(settings: Settings, path: Path | str) -> None:
    """Writes settings as JSON, atomically."""
    files.write_json(path, {"format": _FORMAT, **dataclasses.asdict(settings)})


class GivenUp(NamedTuple):
    """A setting of which a run has another value than it was asked for: memory would not do."""

    name: str
    asked: Any
    used: Any


def read_given_up(workdir: Workdir) -> list[GivenUp]:
    """What a run has given up for lack of memory, from its workdir; empty without the file.

    Raises:
        InputError: a damaged file.
    """
    path = workdir.given_up
    if not path.exists():
        return []
    try:
        rows = [GivenUp(**row) for row in files.read_json_object(path)["settings"]]
        wrong = [row.name for row in rows if not isinstance(row.name, str)]
        if wrong:
            raise TypeError(f"a setting called {wrong[0]!r:.80}")
        check(with_given_up(Settings(), rows))
    except (KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path}: expected settings with the values that were asked for and that are used, got "
            f"{error!s:.200}; use a copy of the file, or another --workdir"
        ) from error
    return rows


def with_given_up(settings: Settings, rows: Sequence[GivenUp]) -> Settings:
    """The settings with the values that a run uses; the given ones stay as they are."""
    return with_values(settings, {row.name: row.used for row in rows})


def with_absolute_paths(settings: Settings) -> Settings:
    """The same settings with absolute paths."""
    data = dataclasses.replace(settings.data)
    if data.path != "generated":
        data.path = os.path.abspath(os.path.expanduser(data.path))
    if os.path.isfile(os.path.expanduser(data.split)):
        data.split = os.path.abspath(os.path.expanduser(data.split))
    return dataclasses.replace(settings, data=data)


def is_among(name: str, free: tuple[str, ...]) -> bool:
    """Whether a setting's dotted name is one of these names, or in one of their groups, which end
    with a dot.
    """
    return any(name == item or (item.endswith(".") and name.startswith(item)) for item in free)


def take_free(settings: Settings, source: Settings) -> None:
    """Copies the settings that never change a trained model (`FREE_TO_CHANGE`), except data.path.

    Args:
        settings: changed in place.
        source: where the values come from.
    """
    for name, _, value in leaves(source):
        if is_among(name, FREE_TO_CHANGE) and name != "data.path":
            set_value(settings, name, value)


def check_fits(
    settings: Settings, workdir: Workdir, free: tuple[str, ...] = FREE_TO_CHANGE
) -> None:
    """Checks that a workdir's run can go on with these settings. Before its first saved step any
    settings can. What counts is what its checkpoints were made with, also where `config.json` was
    changed or removed since.

    Args:
        settings: checked settings.
        workdir: of the run; may be missing.
        free: names, or groups with a final dot, that may differ from what the workdir has.
    Raises:
        InputError: a setting that shapes the model differs; the message has its name, both values
            and what to do.
    """
    if workdir.has_begun():
        check_made_with(settings, workdir, free)


def check_made_with(
    settings: Settings, workdir: Workdir, free: tuple[str, ...] = FREE_TO_CHANGE
) -> None:
    """`check_fits` of a workdir whose settings bind, though no step of it may be saved."""
    saved = next((path for path in (workdir.made_with, workdir.config) if path.exists()), None)
    if saved is None:
        return
    before = {name: value for name, _, value in leaves(load(saved))}
    for name, _, value in leaves(settings):
        if value != before[name] and not is_among(name, free):
            raise InputError(
                f"config.{name}: {workdir} was made with {before[name]!r}, got {value!r}; give "
                "the old value, or use another --workdir"
            )


def first_change(wanted: Any, made_with: Mapping[str, Any], besides: Sequence[str] = ()) -> str:
    """The first setting of a group that something was made with another value of; "" = there is
    none. What nobody has set may be as it was then.

    Args:
        wanted: the group.
        made_with: values by name, without the group's.
        besides: settings that do not matter.
    """
    usual = dataclasses.asdict(type(wanted)())
    for name, value in dataclasses.asdict(wanted).items():
        if value not in (usual[name], made_with.get(name)) and name not in besides:
            return name
    return ""
