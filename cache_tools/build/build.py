"""A build from end to end: prepare, check that the folder is the cache asked for, fill it, stop in good order."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.build.pipeline import committed_shards, fill, missing_shards
from cache_tools.build.prepare import prepare, preparing_prefix, publish, text_records
from cache_tools.build.resolve import pinned
from cache_tools.build.restore import lost_tokens, restore_tokens
from cache_tools.build.workers import ALONE, Worker, wait_for_seal
from cache_tools.errors import CometError
from cache_tools.interrupts import StoppedAtOnce, signals_handled_by
from cache_tools.models import choose_device
from cache_tools.settings import BuildSettings, parse_layers
from cache_tools.sharing.card import require_consent, say_whose
from cache_tools.sharing.listing import Listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location, locate
from cache_tools.sharing.resume import fetch, find_existing, require_same_seal, take_sealed
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.sharing.upload import pushing
from cache_tools.store.copy import writing_in
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.staging import claimed_folder, remove_abandoned
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.text.languages import find_language
from cache_tools.text.sources import ITEM_FORMATS, find_sources, find_texts
from cache_tools.text.tokenizer import load_teacher_tokenizer, tokenizer_sha256


def build_cache(
    settings: BuildSettings,
    worker: Worker = ALONE,
    max_hours: float | None = None,
    push_to: str | None = None,
    i_may_share_this: bool = False,
) -> Cache:
    """Builds `settings.out`, or goes on with it. Returns the cache, complete but for the shards of other workers.

    With `max_hours` no shard is begun when that much time has passed. With `push_to`, a folder or a URL, the cache
    goes there, too, every shard as soon as it is committed; what is there already is fetched and not built again. A
    URL needs `i_may_share_this` where a text's licence is unknown or restricts its use.
    Raises CometError for a call that cannot be, a teacher or text that cannot be read, a folder or URL that holds
    another cache, a disk or server that refuses, and when time, SIGINT or SIGTERM ended the build before this worker's
    last shard.
    """
    if settings.out.exists() and not (settings.out / "zarr.json").is_file():
        raise CometError(f"{settings.out}: exists and is not a cache; choose another --out", exit_code=2)
    if settings.out.exists():
        open_cache(settings.out).require_text()
    find_texts(settings.text)
    find_sources(settings.exclude, "--exclude", ITEM_FORMATS)
    device, policy = choose_device(settings.device), RetryPolicy()
    location = locate(push_to, policy) if push_to is not None else None
    found = find_existing(location, policy) if location is not None else None
    if location is not None and found is None and worker.index:
        found = wait_for_seal(settings.out, partial(find_existing, location, policy))
    settings = pinned(settings, found.cache.provenance if found is not None else {})
    if location is not None:
        require_shareable(settings, location, i_may_share_this)
    teacher, tokenizer = load_teacher(settings.teacher), load_teacher_tokenizer(settings.teacher)
    asked = partial(request_differences, settings, teacher=teacher, tokenizer=tokenizer_sha256(tokenizer))
    if found is not None:
        require_asked(asked(found.cache), found.location.name, "--push-to")
    if found is not None and not settings.out.exists():
        begin_with(found, settings.out, policy)
    elif not worker.waits:
        prepare_unless_sealed(settings, teacher, tokenizer)
    else:
        wait_for_seal(settings.out)
    cache = open_cache(settings.out)
    require_asked(asked(cache), str(settings.out), "--out")
    if found is not None:
        require_same_seal(found, cache)
        fetch(found, cache, missing_shards(cache, worker), policy)
    if lost := lost_tokens(cache, missing_shards(cache, worker)):
        texts = find_texts(settings.text), find_sources(settings.exclude, "--exclude", ITEM_FORMATS)
        restore_tokens(cache, lost, *texts, tokenizer)
    before = committed_shards(cache, worker)
    with (
        stop_on_signal() as stop,
        stop_after(max_hours, stop),
        nullcontext(forget) if location is None else pushing(cache, location, before, policy, stop) as committed,
    ):
        if missing_shards(cache, worker):
            tqdm.write(f"{worker}: {fill(cache, teacher, device, stop, worker, committed)}")
    if left := missing_shards(cache, worker):
        raise CometError(f"{settings.out}: stopped with {len(left)} shards to go; run the same command again to go on")
    return cache


def forget(group: str, shard: int) -> None:
    """What becomes of a committed shard that goes nowhere else."""


def require_shareable(settings: BuildSettings, location: Location, may_share: bool) -> None:
    """Say whose text will lie at the location. Raises CometError if it leaves the machine without consent.

    A folder is not asked about: `--out` could be there as well.
    """
    begun = settings.out.exists()
    made_from = open_cache(settings.out).provenance if begun else {"text": text_records(find_texts(settings.text))}
    say_whose(made_from)
    if not isinstance(location, Folder):
        require_consent(made_from, f"--push-to {location.name}", may_share)


def begin_with(found: Listing, out: Path, policy: RetryPolicy) -> None:
    """Makes `out` with what was sealed elsewhere. Raises CometError when it cannot be had, or the disk refuses."""
    tqdm.write(f"{found.location.name}: the cache is begun there; going on with it in {out}")
    with writing_in(out.parent), claimed_folder(out.parent, preparing_prefix(out)) as work:
        take_sealed(found, work / "cache", policy)
        publish(work / "cache", out)


def prepare_unless_sealed(settings: BuildSettings, teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises CometError as `prepare` does, when the disk refuses, and at SIGINT or SIGTERM, which leave nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise CometError("stopped while preparing the text; nothing is kept, run the same command again")

    try:
        with signals_handled_by(stop):
            remove_abandoned(settings.out.parent, preparing_prefix(settings.out))
            if not settings.out.exists():
                prepare(settings, teacher, tokenizer)
    except OSError as error:
        raise CometError(f"{settings.out}: cannot be created ({error.strerror or error})") from error


def require_asked(differences: list[str], where: str, option: str) -> None:
    """Raises CometError when the cache at an option's location is not the one asked for."""
    if differences:
        raise CometError(
            f"{where}: exists and is another cache than the one asked for ({'; '.join(differences)}); "
            f"choose another {option}, or give the options it was begun with to go on with it",
            exit_code=2,
        )


def request_differences(settings: BuildSettings, cache: Cache, teacher: Teacher, tokenizer: str) -> list[str]:
    """What this call asks for that the cache is not, one entry each; empty when the cache is the one asked for."""
    recipe, made_from = cache.recipe, cache.provenance
    asked = {
        "teacher weights sha256": (teacher.sha256, recipe.teacher_sha256),
        "tokenizer sha256": (tokenizer, recipe.tokenizer_sha256),
        "--seq-len": (settings.seq_len, recipe.seq_len),
        "--views": (settings.views, recipe.views),
        "--mask-prob": (settings.mask_prob, recipe.mask_prob),
        "--seed": (settings.seed, recipe.seed),
        "--keep": (settings.keep, recipe.keep),
        "--top-k": (settings.top_k, recipe.top_k),
        "--temperatures": (settings.temperatures, recipe.temperatures),
        "--attention-layers": (
            parse_layers(settings.attention_layers, recipe.teacher_layers),
            recipe.attention_layers,
        ),
        "--attention-size": (settings.map_size, recipe.attention_size),
        "--attention-every": (settings.attention_every, recipe.attention_every),
        "--rows-per-shard": (settings.rows_per_shard, recipe.rows_per_shard),
        "--max-tokens": (settings.token_limit, made_from.get("max_tokens")),
        "--text": ([text.record() for text in find_texts(settings.text)], without_licences(made_from.get("text"))),
        "--exclude": (
            [source.record() for source in find_sources(settings.exclude, "--exclude", ITEM_FORMATS)],
            made_from.get("excluded"),
        ),
        "--lang": (find_language(settings.language).code, made_from.get("language")),
    }
    if settings.dtype != "auto":
        asked["--dtype"] = (settings.dtype, cache.settings["dtype"])
    if settings.batch_size is not None:
        asked["--batch-size"] = (settings.batch_size, cache.settings["batch_size"])
    return [f"{name}: asked {a}, the cache has {b}" for name, (a, b) in asked.items() if a != b]


def without_licences(recorded: Any) -> Any:
    """The texts of a cache as their records were when it was made; the licence is known only to the hub."""
    return [{name: value for name, value in text.items() if name != "licence"} for text in recorded or []]


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Sets the event at the first SIGINT or SIGTERM; the second raises StoppedAtOnce there and then."""
    stop, asked = threading.Event(), False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise StoppedAtOnce("stopped at once; the shard in work is lost, run the same command again to go on")
        asked = True
        stop.set()
        tqdm.write("stopping after the shard in work (once more to stop at once)")

    with signals_handled_by(request):
        yield stop


@contextmanager
def stop_after(hours: float | None, stop: threading.Event) -> Iterator[None]:
    """Sets the event when the time has passed."""
    timer = threading.Timer(hours * 3600 if hours else 0.0, stop.set)
    if hours is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
