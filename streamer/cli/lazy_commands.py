"""Commands that are imported when they are used: each needs few of the libraries of all."""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module

import click


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands of a click.Group by name.

    Each is the `command` of its module, which is imported when the command is first looked up.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        """`modules` has the dotted name of the module of each command."""
        self._modules = dict(modules)
        self._commands: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._commands and name in self._modules:
            self._commands[name] = import_module(self._modules[name]).command
        return self._commands[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._commands

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules | self._commands)

    def __len__(self) -> int:
        return len(self._modules | self._commands)
