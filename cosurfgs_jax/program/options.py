"""The command line: flags and settings of a program, its workdir, and its help."""

import dataclasses
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from cosurfgs_jax import settings_file
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.part import Part
from cosurfgs_jax.program.config_file import load_config_file
from cosurfgs_jax.program.foreign_folder import refuse_foreign
from cosurfgs_jax.settings import Settings, iter_help
from cosurfgs_jax.settings_file import OF_OUTPUTS, is_among
from cosurfgs_jax.storage import is_disk_full
from cosurfgs_jax.workdir import Workdir

HELP_FLAGS = {"-h", "-help", "--help", "--helpshort", "--helpfull"}
_PRESET_HELP = "a config file that comes with the package, by its name: aerial, default, ..."
_WORKDIR_HELP = {
    "create": "folder of the run; the same one again resumes it",
    "trained": "folder of a run that `train` made",
    "optional": "folder that the run has or will have; may be left out",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a program was asked to do."""

    settings: Settings
    folder: Workdir | None  # None for a program that has none
    flags: flags.FlagValues  # the program's own flags by name

    @property
    def workdir(self) -> Workdir:
        """The workdir of a program that has one."""
        return required(self.folder, "Options.folder")


def no_flags(values: flags.FlagValues) -> None:
    """Declares nothing, for a program that has no flags of its own."""


def declare_shard(values: flags.FlagValues, of_what: str) -> None:
    """Declares --shard, for a program whose output may be made by processes of their own.

    Args:
        values: of the program.
        of_what: what it is cut into, for the help.
    """
    meaning = f"i/n: make part i of n {of_what} alone; without --shard all parts are merged"
    flags.DEFINE_string("shard", "", meaning, flag_values=values)


def shard_of(values: flags.FlagValues) -> Part | None:
    """The part that --shard names; None where it is not given.

    Raises:
        InputError: it is no part.
    """
    return Part.parse(values.shard, "--shard") if values["shard"].present else None


def declare_flags(
    declare: Callable[[flags.FlagValues], None], workdir: str, argv: Sequence[str]
) -> flags.FlagValues:
    """The flags of a program, not parsed yet.

    Args:
        declare: adds the program's own flags.
        workdir: as `run` has it; with one there are --workdir and --config.
        argv: the command line, for the names of settings in it.
    Raises:
        InputError: an unknown setting.
    """
    values = flags.FlagValues()
    if workdir:
        # Benchmarks need this module and no settings: they do without the package.
        from ml_collections import config_flags

        for argument in argv[1:]:
            override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
            if override:
                settings_file.check_name(override.group(1))
        flags.DEFINE_string("workdir", None, _WORKDIR_HELP[workdir], flag_values=values)
        flags.DEFINE_string("preset", None, _PRESET_HELP, flag_values=values)
        config_flags.DEFINE_config_dataclass(
            "config",
            Settings(),
            "Python file with get_config() -> Settings; --config.NAME=VALUE changes one setting",
            flag_values=values,
            sys_argv=list(argv),
            parse_fn=load_config_file,
        )
    declare(values)
    return values


def parse_options(values: flags.FlagValues, workdir: str, argv: Sequence[str]) -> Options:
    """Parses a command line, finds the settings and makes the workdir.

    Args:
        values: of `declare_flags`.
        workdir: as `run` has it.
        argv: the command line.
    Raises:
        InputError: a wrong argument, setting or folder.
    """
    _refuse_positional(_parsed(values, argv, has_settings=bool(workdir))[1:])
    if not workdir:
        return Options(Settings(), None, values)
    if not values.workdir:
        if workdir == "optional":
            return Options(_checked(values.config), None, values)
        raise InputError("--workdir: expected a folder, got none; give --workdir=DIR")
    folder = Workdir(Path(values.workdir).expanduser().absolute())
    saved = folder.config
    is_trained = workdir == "trained"
    if is_trained and not saved.exists():
        raise InputError(
            f"--workdir={values.workdir}: expected the folder of a trained run, got no "
            f"{saved.name} in it; run `cosurfgs train` first"
        )
    if workdir == "create":
        refuse_foreign(folder)
    if workdir != "optional":
        _make_writable(folder.root)
    has_file = any(re.match(r"--?config(=|$)", argument) for argument in argv[1:])
    settings = values.config
    if is_trained or (saved.exists() and not has_file):
        settings = _saved_settings(saved, values, has_file)
    settings = _checked(settings)
    free = settings_file.FREE_AFTER_TRAINING if is_trained else settings_file.FREE_TO_CHANGE
    settings_file.check_fits(settings, folder, free)
    return Options(settings, folder, values)


def _checked(settings: Settings) -> Settings:
    settings_file.check(settings)
    return settings_file.with_absolute_paths(settings)


def _parsed(values: flags.FlagValues, argv: Sequence[str], *, has_settings: bool) -> list[str]:
    """Parses flags, and says of an unknown one which setting it may be; what is left over."""
    try:
        return values(argv)
    except flags.UnrecognizedFlagError as error:
        meant = settings_file.names_ending_in(error.flagname) if has_settings else []
        if not meant:
            raise
        raise InputError(
            f"--{error.flagname}: no such flag; did you mean "
            f"{' or '.join(f'--config.{name}' for name in meant)}?"
        ) from error


def _refuse_positional(arguments: Sequence[str]) -> None:
    if not arguments:
        return
    hint = "give --NAME=VALUE, as --help lists them"
    if arguments[0].endswith(".py"):
        hint = f"did you mean --config={arguments[0]}?"
    raise InputError(f"{arguments[0]}: unexpected positional argument; {hint}")


def _saved_settings(saved: Path, values: flags.FlagValues, has_file: bool) -> Settings:
    """The settings of an earlier run with what the command line changes in them."""
    from ml_collections import config_flags

    settings = settings_file.load(saved)
    if has_file:  # it has neither the dataset nor the other flags of the run's first command
        settings_file.take_free(settings, values.config)
    for name, value in config_flags.get_override_values(values["config"]).items():
        settings_file.set_value(settings, name, value)
    return settings


def _make_writable(folder: Path) -> None:
    """Makes the workdir and writes to it, so that a run does not fail at its first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(
            f"--workdir={folder}: expected a folder that can be written, but it could not be "
            f"written ({error.strerror}); choose another one"
        ) from error


def help_text(doc: str, values: flags.FlagValues, workdir: str, *, is_full: bool) -> str:
    """What --help prints.

    Args:
        doc: docstring of the program.
        values: its flags.
        workdir: as `run` has it; with one there are settings.
        is_full: whether all settings are listed (--helpfull), or those that matter most (--help).
    """
    lines = [doc.strip().replace("python -m cosurfgs_jax.", "cosurfgs "), "", "Flags:"]
    for name in sorted(values):
        default = values[name].default
        has_default = name != "config" and default not in (None, "")
        shown = f" (default {default})" if has_default else ""
        lines.append(f"  --{name}: {values[name].help}{shown}")
    if workdir:
        lines += ["", *_settings_lines(workdir, is_full)]
    return "\n".join(lines)


def _settings_lines(workdir: str, is_full: bool) -> list[str]:
    """All settings with their sentences, or the few that matter most to a program."""
    every = list(iter_help())
    shown = every
    lines = ["Settings:"]
    if not is_full:
        shown = [item for item in every if item.is_main]
        lines = ["Settings that matter most:"]
    if not is_full and workdir == "trained":  # the others are those of the run
        shown = [item for item in shown if is_among(item.name, OF_OUTPUTS)]
    for item in shown:
        lines += [f"  --config.{item.name}={item.default}", f"      {item.help_text}"]
    if not is_full:
        lines.append(f"  all {len(every)} settings: --helpfull")
    return lines
