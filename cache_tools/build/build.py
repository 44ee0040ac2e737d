"""A build from end to end: resolve inputs, prepare rows, run the teacher over them, stop cleanly."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from cache_tools.build.destination import find_destination
from cache_tools.build.pipeline import committed_shards, fill, missing_shards
from cache_tools.build.prepare import prepare_once
from cache_tools.build.request import require_requested
from cache_tools.build.resolve import at_commits, find_inputs
from cache_tools.build.restore import restore_lost
from cache_tools.build.workers import ALONE, Worker, wait_for_seal
from cache_tools.checks import require_type, shown
from cache_tools.errors import CometError, Stopped
from cache_tools.interrupts import stop_on_signal
from cache_tools.models import choose_device
from cache_tools.places.foreign import named
from cache_tools.settings import BuildSettings
from cache_tools.store.reader import Cache, open_cache

MOST_HOURS = 100_000  # eleven years


def build_cache(
    settings: BuildSettings,
    worker: Worker = ALONE,
    max_hours: float | None = None,
    push_to: str | Path | None = None,
    i_may_share_this: bool = False,
) -> Cache:
    """Build `settings.out`, or resume it. Return the cache, complete but for the shards of other workers.

    With `max_hours` no shard is begun once the call has taken that much time. With `push_to`, a folder or a URL, every
    shard is pushed there as soon as it is committed; shards already there are fetched, not built again. A URL needs
    `i_may_share_this` if a text's licence is unknown or restricts its use.
    Raises CometError if arguments are invalid, a teacher or text cannot be read, `out` or `push_to` holds another
    cache, a disk or server refuses, or time, SIGINT or SIGTERM ended the build before this worker's last shard;
    KeyboardInterrupt at a second signal, or at the first while the text is prepared.
    """
    for name, value, hint in (
        ("settings", settings, BuildSettings),
        ("worker", worker, Worker),
        ("max_hours", max_hours, float | None),
        ("push_to", push_to, str | Path | None),
    ):
        require_type(value, hint, f"build_cache: {name}")
    out, began = settings.out, time.monotonic()
    if max_hours is not None and not 0 < max_hours <= MOST_HOURS:
        raise CometError(f"--max-hours {shown(max_hours)}: expected more than 0, at most {MOST_HOURS}", exit_code=2)
    inputs, device = find_inputs(settings), choose_device(settings.device)
    begun = _begun(out)
    destination = find_destination(push_to, out, worker)
    existing = destination.existing
    begun = begun or _begun(out)  # another worker may have begun while this one waited
    known = begun or (existing.cache if existing else None)
    inputs = at_commits(inputs, known.provenance if known else {})
    whose = begun.provenance if begun else {"text": inputs.text_provenance(), **inputs.teacher_provenance()}
    has_start = bool(begun.recipe.start_layers) if begun else settings.start_layers != "none"
    destination.require_shareable(whose, has_start, i_may_share_this)
    teacher, tokenizer = inputs.load_teacher()
    if existing is not None:
        require_requested(inputs, teacher, tokenizer, existing.cache, existing.location.name, "--push-to")
    if existing is not None and not out.exists():
        destination.begin(existing, out)
    elif worker.waits:
        wait_for_seal(out)
    else:
        prepare_once(inputs, teacher, tokenizer)
    cache = open_cache(out)
    require_requested(inputs, teacher, tokenizer, cache, str(out), "--out")
    destination.fetch(cache, missing_shards(cache, worker))
    restore_lost(cache, missing_shards(cache, worker), inputs.texts, inputs.excluded, tokenizer)
    before = committed_shards(cache, worker)
    if before and (left := missing_shards(cache, worker)):
        total = len(before) + len(left)
        tqdm.write(f"{out}: {len(before):,} of {total:,} shards are already built; continuing with the rest")
    left_seconds = None if max_hours is None else began + max_hours * 3600 - time.monotonic()
    with stop_event(left_seconds) as stop, destination.pushing(cache, before, stop) as committed:
        if missing_shards(cache, worker):
            tqdm.write(f"{worker}: {fill(cache, teacher, device, stop, worker, committed)}")
    if left := missing_shards(cache, worker):
        shards = "1 shard" if len(left) == 1 else f"{len(left)} shards"
        raise Stopped(f"{out}: stopped with {shards} to go; run the same command again to continue")
    return cache


def _begun(out: Path) -> Cache | None:
    """Return the cache in a folder, None if there is no folder. Raises CometError if the build cannot resume it."""
    if not out.exists():
        return None
    if not (out / "zarr.json").is_file():
        found = named(sorted(path.name for path in out.iterdir())) or "nothing"
        raise CometError(f"{out}: exists and is not a cache (it holds {found}); choose another --out", exit_code=2)
    cache = open_cache(out)
    cache.require_text()
    return cache


@contextmanager
def stop_event(seconds: float | None = None) -> Iterator[threading.Event]:
    """Yield an event that is set at the first SIGINT or SIGTERM, or after `seconds`, at once if none are left; a second
    signal raises KeyboardInterrupt."""
    stop = threading.Event()
    timer = threading.Timer(seconds or 0.0, stop.set)

    def first() -> None:
        stop.set()
        tqdm.write("stopping after the current shard, all that the bar counts now (interrupt again to stop at once)")

    with stop_on_signal(first, "stopped at once; the current shard is lost; run the same command again to continue"):
        if seconds is not None and seconds <= 0:
            stop.set()
        elif seconds is not None:
            timer.start()
        try:
            yield stop
        finally:
            timer.cancel()
