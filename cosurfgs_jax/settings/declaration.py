"""How a setting is declared: its default, a sentence of help and its check, in one place."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

from cosurfgs_jax.errors import InputError


class Check(NamedTuple):
    """A condition on one value and its words in a message."""

    expected: str  # what stands after "expected"
    accepts: Callable[[Any], bool]


class Declaration(NamedTuple):
    """What is known of a setting beside its name, type and default."""

    help_text: str
    check: Check | None
    largest: int | None  # None: the largest of its type (settings_file.py)
    term: str = ""  # module of losses/ whose term it is the weight of; "" = of none
    is_main: bool = False  # of the few that most users set: `--help` lists it


def setting(
    default: Any,
    help_text: str,
    check: Check | None = None,
    largest: int | None = None,
    *,
    is_main: bool = False,
) -> Any:
    """Declares one setting of a `SettingsGroup`.

    Args:
        default: value where nothing else is given.
        help_text: a sentence (or two); it gives the unit and what special values mean, and does
            not repeat the default.
        check: of the value; None where each value of the type is good.
        largest: bound on the absolute value of a number, for one that is far smaller than what
            its type can hold.
        is_main: whether it is one of the about fifteen that matter to most users, which `--help`
            and the page of settings show first; `--helpfull` shows all.
    """
    declaration = Declaration(help_text, check, largest, is_main=is_main)
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def term_weight(term: str, default: float, help_text: str) -> Any:
    """Declares the weight of a term of the loss. This also registers the term: it is part of the
    loss wherever its weight is not 0 (`training/loss_terms.py`).

    Args:
        term: module of losses/ with the term, as `TERM`; loaded with the rest of the losses.
        default, help_text: see `setting`.
    """
    declaration = Declaration(help_text, not_negative(), None, term)
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def declaration_of(field: dataclasses.Field) -> Declaration:
    """What `setting` was given for a field."""
    return field.metadata["declaration"]


def type_of(field: dataclasses.Field) -> type:
    """The type of a setting or group: annotations of settings are types, not texts."""
    return cast(type, field.type)


def number(
    expected: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> Check:
    """A number between bounds, where `above` and `below` do not include the bound."""

    def accepts(value: float) -> bool:
        return at_least <= value <= at_most and above < value < below

    return Check(expected, accepts)


def at_least(minimum: float, expected: str = "") -> Check:
    """A number that is not below `minimum`."""
    return number(expected or f"at least {minimum}", at_least=minimum)


def not_negative(expected: str = "0 or more") -> Check:
    """Zero or a positive number."""
    return number(expected, at_least=0)


def positive(expected: str = "a positive number") -> Check:
    """A number above zero."""
    return number(expected, above=0)


def fraction(expected: str) -> Check:
    """A number from 0 to 1, both included."""
    return number(expected, at_least=0, at_most=1)


def proper_fraction(expected: str) -> Check:
    """A number from 0 to below 1."""
    return number(expected, at_least=0, below=1)


def one_of(names: Sequence[str], expected: str) -> Check:
    """One of several texts."""
    return Check(expected, lambda value: value in names)


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    """Refuses a setting.

    Args:
        condition: whether it is good.
        name: dotted, without "config.".
        expected: what is good.
        got: the value.
    Raises:
        InputError: "config.NAME: expected EXPECTED, got GOT".
    """
    if not condition:
        raise InputError(f"config.{name}: expected {expected}, got {got!r}")


@dataclasses.dataclass
class SettingsGroup:
    """Settings of one consumer. A subclass declares fields with `setting` and names its group:
    `class TrainSettings(SettingsGroup, name="train")`.
    """

    group_name: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", **keywords):
        super().__init_subclass__(**keywords)
        cls.group_name = name

    def validate(self) -> None:
        """Checks each setting of this group and of the groups in it, then what holds between them.

        Raises:
            InputError: names the setting, what was expected and what was got.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, SettingsGroup):
                value.validate()
                continue
            check = declaration_of(field).check
            if check is not None:
                require(check.accepts(value), self.dotted(field.name), check.expected, value)
        self.check_together()

    def check_together(self) -> None:
        """Checks what holds between several settings of this group; nothing unless overridden.

        Raises:
            InputError: as `validate`.
        """

    def dotted(self, name: str) -> str:
        """A setting's name with that of its group."""
        return f"{self.group_name}.{name}" if self.group_name else name
