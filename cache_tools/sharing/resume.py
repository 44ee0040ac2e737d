"""Going on with a cache that another place holds the beginning of."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.concurrent import tried
from cache_tools.sharing.listing import ROOT, Shard, Source, look
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Place
from cache_tools.sharing.locations.remote import Patience
from cache_tools.sharing.plan import demand_empty, plan
from cache_tools.sharing.transfer import Transfer, carry_out
from cache_tools.store.copy import differences
from cache_tools.store.ledger import EXTENT, SEAL, whole_extent
from cache_tools.store.reader import Cache
from cache_tools.store.records import MAX_RECORD_BYTES, read_bounded


def begun_at(place: Place, patience: Patience) -> Source | None:
    """What a place holds of a cache that may be built on; None where none is begun, or not as far as its extent.

    Raises CometError where nobody can write, for other files, and for a cache whose shards lack arrays.
    """
    place.demand_writable()
    sizes = [tried(partial(place.size_of, path), patience, Event()) for path in (ROOT, SEAL, EXTENT)]
    if sizes[0] is None:
        demand_empty(place, patience)
    if None in sizes:
        return None
    source = look(place, patience)
    if lacking := [name for name in source.cache.specs["train"] if name not in source.cache.extent.arrays]:
        raise CometError(
            f"{place.name}: holds a part of a cache, without {', '.join(lacking)}, which cannot be built on; choose "
            "another place",
            exit_code=2,
        )
    return source


def take_sealed(source: Source, folder: Path, patience: Patience) -> None:
    """Makes, in a new folder, the cache of a source with nothing built, meant to hold all of it."""
    to = Folder(folder)
    planned = replace(plan(source, to, Part(), patience), extent=whole_extent(source.cache.recipe), lacking={})
    with to.staging():
        Transfer(planned, patience, lambda size: None).run()


def demand_same_seal(source: Source, cache: Cache) -> None:
    """Raises CometError when a cache of the source's recipe has other sealed files, as made by another machine."""
    if read_bounded(cache.root / SEAL, MAX_RECORD_BYTES) != source.metadata[SEAL]:
        raise CometError(
            f"{source.place.name}: holds another cache than {cache.root} ({differences(source.cache, cache)}); choose "
            "another --push-to, or another --out to go on with what is there",
            exit_code=2,
        )


def fetch(source: Source, cache: Cache, shards: Sequence[Shard], patience: Patience) -> None:
    """Brings those of these shards that the source has, so that nobody builds them again."""
    there = {shard for shard in shards if shard in source.records}
    if not there:
        return
    tqdm.write(f"{source.place.name}: holds {len(there)} of {len(shards)} shards that are to be built; fetching them")
    to = Folder(cache.root)
    planned = plan(source, to, Part(), patience)
    lacking = {shard: names for shard, names in planned.lacking.items() if shard in there}
    with to.staging():
        carry_out(replace(planned, extent=cache.extent, lacking=lacking), "pull", patience)
