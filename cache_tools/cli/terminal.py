"""Terminal output of every command: errors in one line, quiet libraries, no control characters."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from cache_tools.errors import CometError, Stopped, printable, visible
from cache_tools.places.urls import without_secrets


class WrongCall(click.ClickException):
    """A CometError raised while the command line is still being parsed."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        _show_error(self.message)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a CometError into one line on stderr and its exit code, and any other error or Ctrl-C too unless
    `--debug`."""

    @wraps(command)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            if debug:
                raise
            click.echo(visible(str(interrupt)) or "stopped; run the same command again", err=True)
            sys.exit(1)
        except Exception as error:
            if debug or isinstance(error, click.ClickException | BrokenPipeError):  # click handles these
                raise
            known = isinstance(error, CometError)
            text = str(error) if known else f"unexpected {type(error).__name__}: {error} (--debug shows where)"
            if isinstance(error, Stopped):
                click.echo(visible(without_secrets(text)), err=True)
            else:
                _show_error(text)
            sys.exit(error.exit_code if isinstance(error, CometError) else 1)

    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)


def quiet_libraries() -> None:
    """Silence the progress bars and advice of libraries, except the bars of downloads. Call it before torch is loaded,
    which takes seconds and is announced on a terminal."""
    say_on_terminal("loading torch …")
    import transformers.utils.logging as transformers_logging
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty() and not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()  # of downloads, which transformers disables with its own
    for name in ("huggingface_hub", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _show_error(message: str) -> None:
    """Print one line to stderr, without the secrets of URLs, which messages of libraries may contain."""
    text = visible(without_secrets(" ".join(message.split())))
    click.echo(f"{painted('error:', fg='red')} {text}", err=True)


def say_on_terminal(line: str) -> None:
    """Print a line to stderr if that is a terminal, for a person who is waiting."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


def painted(text: str, **style: Any) -> str:
    """Return the text in colour, or plain if NO_COLOR is set; `click.echo` removes colour if there is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def fact_line(name: str, value: object) -> str:
    """Return one line of a table of facts; a number of bytes is also in megabytes."""
    if name.endswith("bytes") and isinstance(value, int):
        value = f"{value:,} ({value / 1e6:,.1f} MB)"
    shown = f"{name.replace('_', ' '):<18}"
    return f"  {painted(shown, dim=True)} {printable(value)}"
