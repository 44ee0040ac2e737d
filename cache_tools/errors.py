"""The one exception of the project, and text that is safe to print."""

import re


class CometError(Exception):
    """One line: what failed and where, what was found and expected, and what to do next.

    `exit_code` is 2 if the call was wrong (an option, a path), else 1 (it failed, or damage was found).
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(CometError):
    """Raised when work ends early as requested, by a signal or a time limit; not a failure."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


LONGEST = 400  # characters of one fact
SHA256 = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")


def with_short_hashes(text: str) -> str:
    """Return a message with only the beginning of each SHA-256, which tells it from another."""
    return SHA256.sub(r"\1…", text)


def noop(*arguments: object) -> None:
    """Do nothing, in place of a callback that the caller does not need."""


def visible(text: str) -> str:
    r"""Escape every control character (\x1b): text from a cache must not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable(value: object) -> str:
    """Return a value as one short line: numbers with separators, no control characters."""
    return visible((f"{value:,}" if isinstance(value, int) else str(value))[:LONGEST])
