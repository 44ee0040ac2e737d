"""Continue the build of a cache that was started at another location."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from cache_tools.errors import CometError, noop
from cache_tools.settings import Part
from cache_tools.sharing.listing import ROOT, Listing, read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.plan import plan, require_empty
from cache_tools.sharing.retry import RetryPolicy, retry
from cache_tools.sharing.transfer import Transfer, run_plan
from cache_tools.store.copy import differences
from cache_tools.store.ledger import EXTENT, SEAL, ShardKey, whole_extent
from cache_tools.store.reader import Cache
from cache_tools.store.records import MAX_RECORD_BYTES, read_bounded


def find_existing(location: Location, policy: RetryPolicy) -> Listing | None:
    """Return the cache at a location that may be built on, None if there is none, or its extent is not written yet.

    Raises CometError for a location that cannot be written to or holds other files, and for shards that lack arrays.
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


def create_empty_copy(source: Listing, folder: Path, policy: RetryPolicy) -> None:
    """Create, in a new folder, the cache of a source with the whole extent and no shard."""
    to = Folder(folder)
    planned = replace(plan(source, to, Part(), policy), extent=whole_extent(source.cache.recipe), lacking={})
    with to.staging():
        Transfer(planned, policy, noop).run()


def require_same_seal(source: Listing, cache: Cache) -> None:
    """Raise CometError if a cache of the source's recipe has other sealed files, as when another machine made them."""
    if read_bounded(cache.root / SEAL, MAX_RECORD_BYTES) != source.metadata[SEAL]:
        raise CometError(
            f"{source.location.name}: holds another cache than {cache.root} ({differences(source.cache, cache)}); "
            "choose another --push-to, or another --out to continue the cache there",
            exit_code=2,
        )


def fetch(source: Listing, cache: Cache, shards: Sequence[ShardKey], policy: RetryPolicy) -> None:
    """Copy those of the shards that the source has into the cache, so that they are not built again."""
    available = {shard for shard in shards if shard in source.records}
    if not available:
        return
    tqdm.write(f"{source.location.name}: holds {len(available)} of the {len(shards)} shards to build; fetching them")
    to = Folder(cache.root)
    planned = plan(source, to, Part(), policy)
    lacking = {shard: names for shard, names in planned.lacking.items() if shard in available}
    with to.staging():
        run_plan(replace(planned, extent=cache.extent, lacking=lacking), "pull", policy)
