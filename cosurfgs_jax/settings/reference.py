"""Texts made from the declarations: every setting with its default and its help."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from cosurfgs_jax.settings.all_settings import Settings
from cosurfgs_jax.settings.declaration import SettingsGroup, declaration_of, type_of


class SettingHelp(NamedTuple):
    """One setting as a reader needs it."""

    name: str  # dotted, without "config."
    kind: type
    default: Any
    help_text: str
    expected: str  # words of its check, "" where each value of the type is good
    is_main: bool  # of the few that most users set


def iter_help(group: SettingsGroup | None = None) -> Iterator[SettingHelp]:
    """All settings of a group and of the groups in it; None = all there are."""
    group = group or Settings()
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, SettingsGroup):
            yield from iter_help(value)
            continue
        declaration = declaration_of(field)
        expected = ""
        if declaration.check is not None:
            expected = declaration.check.expected
        name = group.dotted(field.name)
        yield SettingHelp(
            name=name,
            kind=type_of(field),
            default=value,
            help_text=declaration.help_text,
            expected=expected,
            is_main=declaration.is_main,
        )


def settings_reference() -> str:
    """All settings in Markdown: those that matter most, then a section a group, a table row a
    setting.
    """
    parts = ["# Settings", "", "Each is set by `--config.NAME=VALUE` or in a config file.", ""]
    settings = Settings()
    parts += ["## Those that matter most", "", "The ones that `--help` lists.", ""]
    parts += _table([item for item in iter_help(settings) if item.is_main])
    parts += ["", "## All of a run", ""]
    general = [item for item in iter_help(settings) if "." not in item.name]
    parts += _table(general)
    for field in dataclasses.fields(settings):
        group = getattr(settings, field.name)
        if isinstance(group, SettingsGroup):
            parts += ["", f"## {field.name}", "", inspect.cleandoc(type(group).__doc__ or ""), ""]
            parts += _table(list(iter_help(group)))
    return "\n".join(parts) + "\n"


def _table(items: list[SettingHelp]) -> list[str]:
    lines = ["| name | type | default | meaning | accepts |", "|--|--|--|--|--|"]
    for item in items:
        cells = (
            f"`{item.name}`",
            item.kind.__name__,
            f"`{_shown(item.default)}`",
            item.help_text,
            item.expected,
        )
        escaped = (cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    return lines


def _shown(default: Any) -> str:
    """A default, so that a reader can type it."""
    if default == "":
        return '""'
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)
