"""What has been committed here and has arrived there."""

from pathlib import Path

from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.location import locate
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.store.ledger import cache_id

HASTY = RetryPolicy(timeout=2, retries=1, pause=0.01)


def committed(out: Path) -> int:
    return len(list((out / "ledger").glob("*-*.json")))


def arrived(url: str) -> int:
    return len(read_listing(locate(url, HASTY), HASTY).records)


def what_is_at(url: str) -> str:
    source = read_listing(locate(url, HASTY), HASTY)
    cache = source.cache
    return cache_id(cache.recipe, cache.seal, cache.extent, source.records)
