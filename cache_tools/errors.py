"""The one exception type of the project."""


class CometError(Exception):
    """What went wrong, where, what was expected and found, and what to do next, in one line.

    `exit_code` is 2 when the call itself was wrong (an option, a path), else 1 (it failed, or damage was found).
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


LONGEST = 400  # characters of one fact


def visible(text: str) -> str:
    """The text with every control character as its escape (\\x1b): what a cache says must not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable(value: object) -> str:
    """One short line: numbers with separators, no control characters."""
    return visible((f"{value:,}" if isinstance(value, int) else str(value))[:LONGEST])
