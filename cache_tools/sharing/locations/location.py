"""Source or destination of a transfer: a folder of this machine, or a URL."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cache_tools.places.urls import is_url, local_path, parse_url
from cache_tools.sharing.locations import Blocks
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.remote import Remote
from cache_tools.sharing.retry import RetryPolicy


class Location(Protocol):
    """Where a cache is, or will be. The methods are documented at `Folder` and `Remote`."""

    name: str

    def read(self, path: str, limit: int) -> bytes | None: ...
    def blocks(self, path: str, size: int) -> Blocks: ...
    def size_of(self, path: str) -> int | None: ...
    def has_exactly(self, path: str, size: int, sha256: str) -> bool: ...
    def require_writable(self) -> None: ...
    def is_empty(self) -> bool: ...
    def close(self) -> None: ...
    def staging(self) -> AbstractContextManager[None]: ...
    def exclusive(self) -> AbstractContextManager[None]: ...
    def write(self, path: str, blocks: Iterable[bytes]) -> None: ...


def locate(location: str, policy: RetryPolicy) -> Location:
    """Return the location at a path or URL. Raises CometError if it is neither, or the URL is not supported."""
    if not is_url(location):
        return Folder(Path(location))
    parts = parse_url(location)
    return Folder(local_path(parts)) if parts.scheme == "file" else Remote(location, policy)
