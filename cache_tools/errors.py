"""The one exception type of the project."""


class CometError(Exception):
    """What went wrong, where, what was expected and found, and what to do next, in one line.

    `exit_code` is 2 when the call itself was wrong (an option, a path), else 1 (it failed, or damage was found).
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
