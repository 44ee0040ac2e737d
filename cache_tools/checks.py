"""Checks of single settings, from a command line, a file, or a caller in Python."""

import math
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from cache_tools.errors import CometError

LARGEST_SEED = 2**32 - 1  # of NumPy's


def require_whole(value: Any, option: str, least: int, most: int = 2**31 - 1) -> None:
    """Raise CometError, naming the option, unless the value is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upper = f" to {most}" if most < 2**31 - 1 else ""
        raise _refused(option, value, f"a whole number from {least}{upper}")


def require_number(value: Any, option: str, least: float = 0.0, most: float = math.inf, *, above: bool = False) -> None:
    """Raise CometError, naming the option, unless the value is a finite number from `least` to `most`; with `above`, it
    must be greater than `least`."""
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not (ok and (least < value if above else least <= value) and value <= most and value < 1e300):
        upper = f", up to {most:g}" if most < math.inf else ""
        raise _refused(option, value, f"a number {'above' if above else 'from'} {least:g}{upper}")


def require_text(value: Any, option: str, choices: tuple[str, ...] = ()) -> None:
    """Raise CometError, naming the option, unless the value is a string that is not empty, or one of the choices."""
    if not isinstance(value, str) or not value or "\0" in value or (choices and value not in choices):
        raise _refused(option, value, ", ".join(choices) or "a string")


def require_truth(value: Any, option: str) -> None:
    """Raise CometError, naming the option, unless the value is True or False."""
    if not isinstance(value, bool):
        raise _refused(option, value, "true or false")


def as_path(value: Any, option: str) -> Path:
    """Return a path that is given as a Path or a string. Raises CometError, naming the option, for anything else."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise _refused(option, value, "a path")
    return Path(value)


def require_types(settings: Any) -> None:
    """Raise CometError, naming the field, for a value of another type than its dataclass declares. A float may be given
    as a whole number."""
    for name, hint in get_type_hints(type(settings)).items():
        require_type(getattr(settings, name), hint, f"{type(settings).__name__}: {name}")


def require_type(value: object, hint: Any, name: str) -> None:
    """Raise CometError, with the name of the value, unless it is of the annotated type `hint`."""
    if not _is_of(value, hint):
        expected = hint.__name__ if type(hint) is type else hint
        raise CometError(f"{name} {shown(value)!r}: expected {expected}, found {type(value).__name__}", exit_code=2)


def _is_of(value: object, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_is_of(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(one, get_args(hint)[0]) for one in value)
    if hint in (int, float):  # bool is a kind of int
        return type(value) is int or type(value) is hint
    return isinstance(value, hint)


def shown(value: Any) -> str:
    """Return a value as a short string for a message."""
    try:
        text = str(value) if isinstance(value, str | int | float | Path | None) else repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "of more than 4,300 digits"
    return text[:80]


def _refused(option: str, value: Any, expected: str) -> CometError:
    return CometError(f"{option} {shown(value)}: expected {expected}", exit_code=2)
