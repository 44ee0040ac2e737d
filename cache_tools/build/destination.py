"""`--push-to`: a second location of a cache, where a build may have been begun and where its shards go."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from cache_tools.build.prepare import preparing_prefix, publish
from cache_tools.build.workers import Worker, wait_for_seal
from cache_tools.errors import noop
from cache_tools.sharing.card import require_consent, say_whose
from cache_tools.sharing.listing import Listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location, locate
from cache_tools.sharing.resume import fetch, find_existing, require_same_seal, take_sealed
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.sharing.upload import pushing
from cache_tools.store.copy import writing_in
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import Cache
from cache_tools.store.staging import claimed_folder


@dataclass(frozen=True)
class Destination:
    """Where shards go beside `--out`; nowhere without a location. `existing` is the cache that was begun there."""

    location: Location | None = None
    existing: Listing | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def require_shareable(self, provenance: dict[str, Any], may_share: bool) -> None:
        """Names the texts that go there. Raises CometError if one leaves the machine without consent.

        A folder needs none: `--out` could be there as well.
        """
        if self.location is None:
            return
        say_whose(provenance)
        if not isinstance(self.location, Folder):
            require_consent(provenance, f"--push-to {self.location.name}", may_share)

    def begin(self, existing: Listing, out: Path) -> None:
        """Makes `out` from what was sealed there. Raises CometError if that cannot be fetched or written."""
        tqdm.write(f"{existing.location.name}: the cache is begun there; going on with it in {out}")
        with writing_in(out.parent), claimed_folder(out.parent, preparing_prefix(out)) as work:
            take_sealed(existing, work / "cache", self.policy)
            publish(work / "cache", out)

    def fetch(self, cache: Cache, missing: Sequence[ShardKey]) -> None:
        """Fetches those of the missing shards that are there already."""
        if self.existing is not None:
            require_same_seal(self.existing, cache)
            fetch(self.existing, cache, missing, self.policy)

    @contextmanager
    def pushing(self, cache: Cache, before: Sequence[ShardKey], stop: Event) -> Iterator[Callable[[str, int], None]]:
        """Gives the function to call for each committed shard, which pushes it; see `sharing.upload.pushing`."""
        if self.location is None:
            yield noop
            return
        with pushing(cache, self.location, before, self.policy, stop) as committed:
            yield committed


def find_destination(push_to: str | None, out: Path, worker: Worker) -> Destination:
    """Looks for a cache at the location. A worker that is not the first waits until one is begun, here or there."""
    if push_to is None:
        return Destination()
    policy = RetryPolicy()
    location = locate(push_to, policy)
    existing = find_existing(location, policy)
    if existing is None and worker.index:
        existing = wait_for_seal(out, partial(find_existing, location, policy))
    return Destination(location, existing, policy)
