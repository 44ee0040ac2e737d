"""Caches moved without their text."""

import threading
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.concurrent import map_concurrently, retry
from cache_tools.sharing.locations.remote import RetryPolicy
from cache_tools.signals import TEXT_ARRAYS
from cache_tools.store.ledger import Extent, without_text
from cache_tools.store.reader import Cache

if TYPE_CHECKING:
    from cache_tools.sharing.locations.location import Location

NOT_ANONYMOUS = (
    "A cache without its text is not anonymous: it says which words are likely at every masked position, and where "
    "that is; which words occur, and how often; and it holds hashes by which who has a text can prove that it is in it."
)


def offered(extent: Extent, part: Part) -> Extent:
    """What of this extent may move."""
    return without_text(extent) if part.detach_text else extent


def require_detached(destination: "Location", there: Extent | None) -> None:
    """Raises CometError when the destination, whose extent is `there`, holds the text already."""
    if there is not None and set(TEXT_ARRAYS) & set(there.arrays):
        raise CometError(
            f"{destination.name}: holds the text of this cache already; leave --detach-text away, or choose another "
            "location",
            exit_code=2,
        )


def require_no_text(
    cache: Cache, destination: "Location", shards: Iterable[tuple[str, int]], policy: RetryPolicy
) -> None:
    """Raises CometError when the destination, which has no extent yet, holds some of the text: a copy of the whole that
    was stopped may have left it."""
    paths = [cache.specs[group][name].chunk_path(shard) for group, shard in shards for name in TEXT_ARRAYS]
    stop = threading.Event()
    sizes = map_concurrently(lambda path: retry(partial(destination.size_of, path), policy, stop), paths, stop)
    for path, size in zip(paths, sizes, strict=True):
        if size is not None:
            raise CometError(
                f"{destination.name}: {path} is of the text, left by a copy of the whole that was stopped; choose "
                "another location, or remove what is there",
                exit_code=2,
            )
