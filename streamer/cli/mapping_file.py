"""Read a mapping that a command is given."""

from pathlib import Path

import click

from streamer.cli.errors import CommandError, ExitCode
from streamer.feeds.mapping import FeedMapping
from streamer.feeds.mapping_reader import MappingError, read_mapping


def load_mapping(path: Path) -> FeedMapping:
    """Read a mapping. Raises CommandError, after all faults were written to stderr."""
    try:
        return read_mapping(path)
    except MappingError as error:
        *others, last = str(error).splitlines()
        for problem in others:
            click.echo(problem, err=True)
        raise CommandError(last, ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", ExitCode.USAGE) from None
