"""`--push-to`: a second location of a cache, to resume its build from and push its shards to."""

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
from cache_tools.checks import require_text
from cache_tools.errors import noop
from cache_tools.places.destinations import require_folder
from cache_tools.sharing.card import print_licences, require_consent
from cache_tools.sharing.listing import Listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location, locate
from cache_tools.sharing.resume import create_empty_copy, fetch, find_existing, require_same_seal
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.sharing.upload import pushing
from cache_tools.store.copy import writing_in
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import Cache
from cache_tools.store.staging import claimed_folder


@dataclass(frozen=True)
class Destination:
    """The location to push shards to, if any. `existing` is the cache already begun there."""

    location: Location | None = None
    existing: Listing | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def require_shareable(self, provenance: dict[str, Any], has_start: bool, may_share: bool) -> None:
        """Print the texts to be pushed, and whether layers of the teacher are. Raises CometError if one would leave the
        machine without consent.

        A folder needs no consent: `--out` could be there as well.
        """
        if self.location is None:
            return
        print_licences(provenance, has_start)
        if not isinstance(self.location, Folder):
            where = f"--push-to {self.location.name}"
            require_consent(provenance, where, may_share, has_start, has_text=True, detachable=False)

    def begin(self, existing: Listing, out: Path) -> None:
        """Create `out` from the existing cache's sealed files. Raises CometError if fetching or writing them fails."""
        tqdm.write(f"{existing.location.name}: the cache was begun there; resuming it in {out}")
        with writing_in(out.parent), claimed_folder(out.parent, preparing_prefix(out)) as work:
            create_empty_copy(existing, work / "cache", self.policy)
            publish(work / "cache", out)

    def fetch(self, cache: Cache, missing: Sequence[ShardKey]) -> None:
        """Fetch those of the missing shards that the existing cache holds."""
        if self.existing is not None:
            require_same_seal(self.existing, cache)
            fetch(self.existing, cache, missing, self.policy)

    @contextmanager
    def pushing(self, cache: Cache, before: Sequence[ShardKey], stop: Event) -> Iterator[Callable[[str, int], None]]:
        """Yield the function that pushes a shard, to call once it is committed; see `sharing.upload.pushing`."""
        if self.location is None:
            yield noop
            return
        with pushing(cache, self.location, before, self.policy, stop) as committed:
            yield committed


def find_destination(push_to: str | Path | None, out: Path, worker: Worker) -> Destination:
    """Look for a cache at the location. All workers but the first wait until one is begun, at `out` or there.

    Raises CometError if it is a folder that is not apart from `out`.
    """
    if push_to is None:
        return Destination()
    require_text(str(push_to).strip(), "--push-to")
    policy = RetryPolicy()
    location = locate(str(push_to), policy)
    if isinstance(location, Folder):
        require_folder(location.root, "--push-to", out)
    existing = find_existing(location, policy)
    if existing is None and worker.index:
        existing = wait_for_seal(out, partial(find_existing, location, policy))
    return Destination(location, existing, policy)
