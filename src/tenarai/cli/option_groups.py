"""Options in groups: `--help` of a verb with many of them shows each group under its heading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class GroupedOption(click.Option):
    """An option that stands under the heading `group` in the help."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has a section for each group, in the order of their first options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def option(group: str, *names: str, **kwargs: Any) -> Callable[[Any], Any]:
    """A decorator like click.option, with a group."""
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


def apply(decorators: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """All of them, the first one's option first in the help."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
