"""Commands that accept an option only once, and whose help has headings and examples.

Written by hand, since libraries for option groups wrap the options in decorators.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cache_tools.cli.terminal import WrongCall
from cache_tools.places.urls import without_secrets

LIBRARIES = ("torch", "transformers", "zarr")


def _show_versions(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import platform
        from importlib.metadata import version

        others = "".join(f", {name} {version(name)}" for name in LIBRARIES)
        click.echo(f"comet-distill {version('comet-distill')}, Python {platform.python_version()}{others}")
        context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of Comet and what it computes with, and exit.",
)


class OneLineUsage(click.Command):
    """A command that reports wrong usage in one line, like every other error, without the secrets of URLs."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise in_one_line(error) from None


def in_one_line(error: click.UsageError) -> WrongCall:
    """Return an error of click in the form of ours, with the command that lists the options."""
    message = error.format_message().rstrip(".")
    advice = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
    return WrongCall(without_secrets(f"{message[:1].lower()}{message[1:]}{advice}"))


class GroupedHelp(OneLineUsage):
    """A command whose help lists its options under headings, and which refuses an option of one value given twice.

    `sections`: heading → names of parameters, in order; all others come under "Other". `examples`: lines of a shell.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections, self.examples = sections or {}, examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise WrongCall for an option given twice, where click would silently take the last value, and for the value
        of a required option that is given without its name."""
        values, left, given = self.make_parser(ctx).parse_args(list(args))
        for option in self.params:
            if left and isinstance(option, click.Option) and option.required and option.name not in values:
                raise WrongCall(f"{left[0]}: expected after an option; did you mean {option.opts[0]} {left[0]}?")
        for parameter, times in Counter(given).items():
            once = isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag)
            if once and times > 1:
                raise WrongCall(f"{parameter.opts[-1]}: given {times} times; give it once")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {str(parameter.name): parameter for parameter in self.get_params(ctx)}
        groups = {heading: [left.pop(name) for name in names] for heading, names in self.sections.items()}
        others: list[click.Parameter] = [one for one in left.values() if isinstance(one, click.Option)]
        for heading, parameters in (groups | {"Other" if groups else "Options": others}).items():
            if records := [record for one in parameters if (record := one.get_help_record(ctx))]:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class GroupedCommands(OneLineUsage, click.Group):
    """A group whose help lists its commands under headings. `sections`: heading → command → short description."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise in_one_line(error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in self.sections.values() for name in section]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), does) for name, does in commands.items()])
