"""Going on with a cache that another location holds the beginning of."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.concurrent import retry
from cache_tools.sharing.listing import ROOT, Listing, read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.locations.remote import RetryPolicy
from cache_tools.sharing.plan import plan, require_empty
from cache_tools.sharing.transfer import Transfer, carry_out
from cache_tools.store.copy import differences
from cache_tools.store.ledger import EXTENT, SEAL, ShardKey, whole_extent
from cache_tools.store.reader import Cache
from cache_tools.store.records import MAX_RECORD_BYTES, read_bounded


def find_existing(location: Location, policy: RetryPolicy) -> Listing | None:
    """What a location holds of a cache that may be built on; None where none is begun, or not as far as its extent.

    Raises CometError where nobody can write, for other files, and for a cache whose shards lack arrays.
    """
    location.require_writable()
    sizes = [retry(partial(location.size_of, path), policy, Event()) for path in (ROOT, SEAL, EXTENT)]
    if sizes[0] is None:
        require_empty(location, policy)
    if None in sizes:
        return None
    source = read_listing(location, policy)
    if lacking := [name for name in source.cache.specs["train"] if name not in source.cache.extent.arrays]:
        raise CometError(
            f"{location.name}: holds a part of a cache, without {', '.join(lacking)}, which cannot be built on; choose "
            "another location",
            exit_code=2,
        )
    return source


def take_sealed(source: Listing, folder: Path, policy: RetryPolicy) -> None:
    """Makes, in a new folder, the cache of a source with nothing built, meant to hold all of it."""
    to = Folder(folder)
    planned = replace(plan(source, to, Part(), policy), extent=whole_extent(source.cache.recipe), lacking={})
    with to.staging():
        Transfer(planned, policy, lambda size: None).run()


def require_same_seal(source: Listing, cache: Cache) -> None:
    """Raises CometError when a cache of the source's recipe has other sealed files, as made by another machine."""
    if read_bounded(cache.root / SEAL, MAX_RECORD_BYTES) != source.metadata[SEAL]:
        raise CometError(
            f"{source.location.name}: holds another cache than {cache.root} ({differences(source.cache, cache)}); "
            "choose another --push-to, or another --out to go on with what is there",
            exit_code=2,
        )


def fetch(source: Listing, cache: Cache, shards: Sequence[ShardKey], policy: RetryPolicy) -> None:
    """Brings those of these shards that the source has, so that nobody builds them again."""
    there = {shard for shard in shards if shard in source.records}
    if not there:
        return
    tqdm.write(
        f"{source.location.name}: holds {len(there)} of {len(shards)} shards that are to be built; fetching them"
    )
    to = Folder(cache.root)
    planned = plan(source, to, Part(), policy)
    lacking = {shard: names for shard, names in planned.lacking.items() if shard in there}
    with to.staging():
        carry_out(replace(planned, extent=cache.extent, lacking=lacking), "pull", policy)
