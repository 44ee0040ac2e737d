"""Check the paths that a command will write to before its first slow step, so that no work is lost.

A place is a file or folder to be created. It must not lie in a cache, which holds nothing but its own files, and the
disk must allow it. Also turns errors of the disk into CometError.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_tools.errors import CometError, first_line

SEAL = "ledger/seal.json"  # by which a cache is known from other folders
LONGEST_NAME = 200  # bytes; file systems allow 255, and hidden folders beside a place have longer names
DISK_ERRORS = ("No space left", "os error 28", "Disk quota", "PytorchStreamWriter", "inline_container")
"""In messages of libraries that raise something else than OSError when a disk is full."""


def enclosing_cache(path: Path) -> Path | None:
    """Return the cache that a path leads into, or to; links are followed. None if there is none."""
    real = path.resolve()
    return next((folder for folder in (real, *real.parents) if (folder / SEAL).exists()), None)


def require_place(path: Path, option: str) -> None:
    """Raise CometError, naming the option, unless a file or folder could be created at `path`: a sensible name, in no
    cache, in a folder that exists or could, on a disk that can be written."""
    import tempfile  # with the hashes that it needs it would lengthen every `--help`

    what = f"{option} {path}"
    if not path.name.strip() or path.name == "..":
        raise CometError(f"{what}: expected a path that ends in a name", exit_code=2)
    if len(os.fsencode(path.name)) > LONGEST_NAME or "\0" in str(path):
        raise CometError(f"{what}: expected a name of at most {LONGEST_NAME} bytes, without NUL", exit_code=2)
    try:
        real = path.resolve()
        outer = enclosing_cache(real.parent)
        folder = real if real.is_dir() else real.parent  # the root of a disk is written, and its parent perhaps not
        while not folder.exists():
            folder = folder.parent
        if outer is None:
            with tempfile.TemporaryFile(dir=folder):
                return
    except (OSError, RuntimeError) as error:  # the second for links in a circle
        raise CometError(f"{what}: cannot be created ({reason(error)}); give another path", exit_code=2) from error
    raise CometError(
        f"{what}: lies in the cache {outer}, which holds nothing but its own files; give a path outside", exit_code=2
    )


def require_folder(path: Path, option: str, *sources: Path) -> None:
    """Raise CometError as `require_place` does, and unless a folder at `path` would be apart from all sources: neither
    one of them, nor in one, nor around one."""
    require_place(path, option)
    if path.exists() and not path.is_dir():
        raise CometError(f"{option} {path}: is a file; expected a folder, or the path of a new one", exit_code=2)
    for source in sources:
        require_apart(source, path, option)
        if source.resolve() == path.resolve():
            raise CometError(f"{option} {path}: is {source} itself; give another folder", exit_code=2)


def require_no_cache(path: Path, option: str) -> None:
    """Raise CometError as `require_place` does, and if there is a cache at `path`."""
    require_place(path, option)
    if (cache := enclosing_cache(path)) is not None:
        raise CometError(
            f"{option} {path}: is the cache {cache}, which holds nothing but its own files; give another path",
            exit_code=2,
        )


def require_apart(source: Path, destination: Path, option: str) -> None:
    """Raise CometError if one of two folders lies in the other; they may be the same."""
    one, other = source.resolve(), destination.resolve()
    if one != other and (one in other.parents or other in one.parents):
        inner = f"lies in {source}" if one in other.parents else f"contains {source}"
        raise CometError(f"{option} {destination}: {inner}; give a folder beside it", exit_code=2)


def is_disk_error(error: BaseException) -> bool:
    """Return whether a disk, or the right to write to it, is what failed, whatever type a library gives the error."""
    return isinstance(error, OSError) or any(sign in str(error) for sign in DISK_ERRORS)


def reason(error: BaseException) -> str:
    """Return what a disk refused, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return os.strerror(errno.ENOSPC) if any(sign in text for sign in DISK_ERRORS) else text


@contextmanager
def writing(path: Path, way_out: str) -> Iterator[None]:
    """Turn errors of the disk within the block into CometError naming `path`; `way_out` says what is safe and what to
    do."""
    try:
        yield
    except CometError:
        raise
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise CometError(f"{path}: cannot be written ({reason(error)}); {way_out}") from error
