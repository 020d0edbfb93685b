"""The settings in force as a commented TOML file, which `--config` reads back."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from streamer.config import Settings
from streamer.urls import redact

_COLUMNS: Final = 100

_PREFACE: Final = """\
The settings of streamer serve, for --config. A setting that is commented out has its default, and
follows the defaults of later versions."""

_REDACTED: Final = "Secrets are left out of this URL: set it here or in STREAMER_{name}."


def config_text(settings: Settings) -> str:
    """Return every setting with its help, as TOML.

    A setting that has its default is commented out. The secrets in a URL are replaced by ***, and a
    comment says so. Read back, the text gives equal settings, but for those secrets.
    """
    return "\n".join(_lines(settings)) + "\n"


def _lines(settings: Settings) -> Iterator[str]:
    yield from _comment(_PREFACE)
    for field in attrs.fields(Settings):
        yield ""
        if (heading := field.metadata["heading"]) is not None:
            yield from (f"# {'-' * len(heading)}", f"# {heading}", f"# {'-' * len(heading)}", "")
        yield from _comment(field.metadata["help"])
        yield from _setting(settings, field)


def _setting(settings: Settings, field: "attrs.Attribute[Any]") -> Iterator[str]:
    value, default = getattr(settings, field.name), _default(settings, field)
    if value is None:
        yield f"# {field.name} is not set"
        return
    shown = redact(value) if isinstance(value, str) else value
    line = f"{field.name} = {_toml(shown)}"
    if value == default:
        yield f"# {line}"
        return
    if shown != value:
        yield from _comment(_REDACTED.format(name=field.name.upper()))
    if default is not None:
        yield from _comment(f"Default: {_toml(default)}")
    yield line


def _default(settings: Settings, field: "attrs.Attribute[Any]") -> Any:
    """Return the default, which may follow from another setting."""
    default: Any = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a function in attrs' stub
        return default.factory(settings) if default.takes_self else default.factory()
    return default


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _COLUMNS - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    assert isinstance(value, str | Path)
    # A string of JSON is one of TOML, but for DEL, which only JSON allows as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
