"""Command line options made from the fields of `Settings`.

Each setting is a flag, a variable ``STREAMER_<NAME>`` and a key of the TOML file of ``--config``. A
flag overrides a variable, a variable the file, and the file the default. Text is converted to
numbers and lists here, but only `Settings` validates values, so that the errors are the same for
all sources; this module adds the source to them.
"""

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import attrs
import click
from click.core import ParameterSource

from streamer.config import LogLevel, Settings
from streamer.setting_rules import SettingError

ENVIRONMENT_PREFIX: Final = "STREAMER_"
SETTINGS_HELP: Final = (
    "Each setting is also a variable, STREAMER_PORT for --port, and a key of the --config file, "
    "port = 8765. A flag overrides a variable, a variable the file."
)

_FIELDS: Final = {field.name: field for field in attrs.fields(Settings)}
_CONFIG_VARIABLE: Final = f"{ENVIRONMENT_PREFIX}CONFIG"
_TYPE_METAVARS: Final[dict[object, str]] = {
    int: "N",
    float: "N",
    str: "URL",
    str | None: "TEXT",
    Path | None: "FILE",
    tuple[str, ...]: "LIST",
}
_UNIT_METAVARS: Final = {
    "_bytes": "BYTES",
    "_host": "ADDRESS",
    "_ms": "MS",
    "_ms_per_client": "MS",
    "_port": "PORT",
    "_seconds": "SECONDS",
    "_url": "URL",
}


class SettingsCommand(click.Command):
    """A command whose help has the settings in sections, by the headings of `Settings`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for the command's own options, and one for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue  # described by the usage line and the text
            if (record := parameter.get_help_record(ctx)) is not None:
                heading = parameter.heading if isinstance(parameter, _SettingOption) else "Options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def with_settings(
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    complete: Callable[[Mapping[str, object]], Mapping[str, object]] = lambda given: given,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of some settings to a command, and pass `settings` made from them to it.

    The other settings keep their defaults, and are ignored in variables and the file, so that one
    file is enough for all commands. `complete` may add to the values that were given.
    """
    names = [name for name in only or _FIELDS if name not in without]
    return _with_values(names, "settings", lambda context, given: _build(context, given, complete))


def with_judged_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of all settings, and pass `judged` to the command: `JudgedSettings`."""
    names = list(_FIELDS)
    decorate = _with_values(names, "judged", lambda context, given: _judge(context, given, dict))
    return decorate(command)


def _with_values(
    names: list[str], keyword: str, make: Callable[[click.Context, dict[str, object]], object]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        @click.pass_context
        def run(context: click.Context, /, *arguments: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in names}
            return command(*arguments, **{keyword: make(context, given)}, **values)

        decorated: Callable[..., Any] = run
        for option in reversed([*_setting_options(names), _config_option]):
            decorated = option(decorated)
        return decorated

    return decorate


class _SettingOption(click.Option):
    """An option with the heading of its section in the help."""

    def __init__(self, *declarations: Any, heading: str, **options: Any) -> None:
        super().__init__(*declarations, **options)
        self.heading = heading


class _Text(click.ParamType[object]):
    """Text that is converted where possible; otherwise `Settings` rejects it."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Convert text; a value from TOML already has its type."""
        del param, ctx
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError:
            return value


class _Switch(click.types.BoolParamType):
    """A boolean that `Settings` validates; click makes ``--x/--no-x`` of this type only."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the texts that click knows; leave others as they are."""
        del param, ctx
        known = self.str_to_bool(value) if isinstance(value, str) else None
        return value if known is None else known


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for item in text.split(",") if (part := item.strip()))


def _setting_options(names: Iterable[str]) -> Iterator[Callable[[Any], Any]]:
    heading = ""
    for field in _FIELDS.values():
        heading = field.metadata["heading"] or heading
        if field.name in names:
            yield _setting_option(field, heading)


def _setting_option(field: "attrs.Attribute[Any]", heading: str) -> Callable[[Any], Any]:
    flag = f"--{field.name.replace('_', '-')}"
    kind: Any = field.type
    parser: click.ParamType[Any]
    if kind is bool:
        parser, flag = _Switch(), f"{flag}/--no-{flag.removeprefix('--')}"
    elif kind in {int, float}:
        parser = _Text("number", kind)
    elif kind == tuple[str, ...]:
        parser = _Text("list", _split)
    else:
        parser = _Text("text", str)
    return click.option(
        flag,
        field.name,
        cls=_SettingOption,
        type=parser,
        metavar=None if kind is bool else _metavar(field.name, kind),
        envvar=f"{ENVIRONMENT_PREFIX}{field.name.upper()}",
        help=f"{field.metadata['help']}{_shown_default(field.default)}",
        heading=heading,
    )


def _metavar(name: str, kind: Any) -> str:
    for suffix, metavar in _UNIT_METAVARS.items():
        if f"_{name}".endswith(suffix):
            return metavar
    if kind in _TYPE_METAVARS:
        return _TYPE_METAVARS[kind]
    return "|".join(get_args(kind))


def _shown_default(default: object) -> str:
    if isinstance(default, bool) or not isinstance(default, str | int | float):
        return ""  # off, none, or in the help itself
    return f"  [default: {default:g}]" if isinstance(default, float) else f"  [default: {default}]"


_OTHER_VARIABLES: Final = (_CONFIG_VARIABLE, "STREAMER_URL", "STREAMER_ADMIN_URL")
"""Variables that are not settings: the file, and URLs of `streamer listen` and `streamer admin`."""


@attrs.frozen
class JudgedSettings:
    """The settings of a command line, without those that are wrong."""

    settings: Settings
    """Settings made from the values that are right."""
    problems: tuple[str, ...]
    """Every problem, each with the source of the value."""
    wrong: frozenset[str]
    """The names of settings with a wrong value, in place of which `settings` has the default."""


def _build(
    context: click.Context,
    given: dict[str, object],
    complete: Callable[[Mapping[str, object]], Mapping[str, object]],
) -> Settings:
    """Make the settings from the values that click has taken from their sources."""
    judged = _judge(context, given, complete)
    if judged.problems:
        raise click.UsageError(judged.problems[0])
    return judged.settings


def _judge(
    context: click.Context,
    given: dict[str, object],
    complete: Callable[[Mapping[str, object]], Mapping[str, object]],
) -> JudgedSettings:
    problems = list(_unknown_names(context))
    explicit = {
        name: value
        for name, value in given.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    wrong: set[str] = set()
    if explicit.get("memory") is True and "redis" in explicit:
        sources = f"{_source(context, 'memory')} and {_source(context, 'redis')}"
        problems.append(f"memory and redis exclude each other (from {sources})")
        wrong.add("redis")
        del explicit["redis"]
    settings: Settings | None = None
    while settings is None:
        try:
            settings = Settings(**complete(explicit))  # type: ignore[arg-type]  # it judges them
        except SettingError as error:
            # A setting that contradicts one that is wrong may be right once that is.
            if wrong.isdisjoint(re.findall(r"\w+", str(error))):
                problems.append(f"{error} (from {_source(context, error.setting)})")
            if error.setting not in explicit:
                raise click.UsageError(problems[0]) from None
            wrong.add(error.setting)
            del explicit[error.setting]
    for name in explicit:
        path = getattr(settings, name)
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            problems.append(f"{name}: {path} cannot be read (from {_source(context, name)})")
            wrong.add(name)
    return JudgedSettings(settings, tuple(problems), frozenset(wrong))


def _source(context: click.Context, setting: str) -> str:
    """Return the source of a setting, for an error: a flag, a variable or a file."""
    source = context.get_parameter_source(setting)
    if source is ParameterSource.ENVIRONMENT:
        return f"{ENVIRONMENT_PREFIX}{setting.upper()}"
    if source is ParameterSource.DEFAULT_MAP:
        return str(context.meta[_CONFIG_VARIABLE])
    return f"--{setting.replace('_', '-')}"


def _unknown_names(context: click.Context) -> Iterator[str]:
    """Yield a problem for each name in the file, and each variable, that is not a setting."""
    for name in context.default_map or ():
        if name not in _FIELDS:
            yield _unknown(name, str(context.meta[_CONFIG_VARIABLE]))
    for variable in sorted(os.environ):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _OTHER_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name not in _FIELDS:
                yield _unknown(name, f"variable {variable}")


def _unknown(name: str, source: str) -> str:
    alike = difflib.get_close_matches(name, _FIELDS, n=1)
    hint = f"; did you mean {alike[0]}?" if alike else ""
    return f"{name} is not a setting (from {source}){hint}"


def _read_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Make the values of the file click's defaults; called before other options are read."""
    if path is None:
        return
    context.default_map = _load_config(path)
    context.meta[_CONFIG_VARIABLE] = path


def _load_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise click.UsageError(f"{path} is not TOML: {error}") from None


def read_log_level(context: click.Context, settings: Settings) -> LogLevel:
    """Return the log level that the --config file has now; `settings` are those of the start.

    A flag or a variable overrides the file, as at the start. Raises click.UsageError if the file
    cannot be used.
    """
    path = context.meta.get(_CONFIG_VARIABLE)
    overriding = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    if path is None or context.get_parameter_source("log_level") in overriding:
        return settings.log_level
    values = _load_config(path)
    for name in values:
        if name not in _FIELDS:
            raise click.UsageError(_unknown(name, str(path)))
    level: Any = values.get("log_level", _FIELDS["log_level"].default)
    try:
        return attrs.evolve(settings, log_level=level).log_level
    except SettingError as error:
        raise click.UsageError(f"{error} (from {path})") from None


_config_option: Final = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar=_CONFIG_VARIABLE,
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="A TOML file with settings.",
)
