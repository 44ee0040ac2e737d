"""Whether a cache is what its ledger says, file by file, and, in depth, whether its values can be right; with a teacher
whether it gives them again."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.rows import content_keys
from cache_tools.settings import RecheckSettings
from cache_tools.sharing.card import CARD
from cache_tools.store.bounds import check_ranges
from cache_tools.store.claim import STAGING
from cache_tools.store.layout import TEXT_ARRAYS, TOKEN_ARRAYS, decode_chunk, max_file_bytes
from cache_tools.store.ledger import EXTENT, LOCK, SEAL, TOKENIZER, FileRecord, shard_record_path
from cache_tools.store.provenance import attach_call
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import inside, read_bounded
from cache_tools.store.tokenizer import parse_tokenizer
from cache_tools.values import Arrays, shard_errors, unmasked, vocabulary_errors

if TYPE_CHECKING:  # it needs torch, which reading does not
    from cache_tools.teacher.recheck import Rerun
    from cache_tools.teacher.tolerance import Run

Place = tuple[str, int]


@dataclass(frozen=True)
class Damage:
    """What is wrong, and with which shard; None: with what was sealed, or with a file that belongs to nothing."""

    message: str
    shard: Place | None = None


@dataclass
class Report:
    """What was looked at, and what was found."""

    root: Path
    deep: bool
    again: RecheckSettings | None = None
    shards: int = 0  # committed, in the extent
    missing: int = 0  # in the extent, not committed
    files: int = 0
    size: int = 0  # bytes of these files
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # neither content nor damage: what a dead builder left
    runs: "list[Run] | None" = None  # of the teacher, if there was one
    attaching: str | None = None  # the call that gives a detached cache its text

    @property
    def damaged_shards(self) -> list[Place]:
        return sorted({damage.shard for damage in self.damage if damage.shard is not None})

    def sound(self, path: Path, data: bytes, matches: bool, shard: Place | None) -> bool:
        """Counts a file, and notes the damage when it is not the one that the ledger describes."""
        self.files, self.size = self.files + 1, self.size + len(data)
        if not matches:
            self.damage.append(Damage(f"{path}: not the file that the ledger describes ({len(data)} bytes)", shard))
        return matches


def verify(path: str | Path, deep: bool = False, again: RecheckSettings | None = None) -> Report:
    """Checks every file against the ledger; with `deep` every value, too, and what can be computed again; with
    `again` runs the teacher again on rows of the shards that are sound so far.

    Goes on after damage, so that all of it is named. Raises CometError when there is no cache at the path at all, and
    for another teacher than the cache's.
    """
    report = Report(Path(path), deep, again)
    try:
        cache = open_cache(path)
    except CometError as error:
        if error.exit_code == 2:
            raise
        report.damage.append(Damage(str(error)))
        return report
    if not cache.extent.has_text:
        report.attaching = attach_call(path, cache.provenance)
    rerun = prepare_rerun(cache, again) if again is not None else None
    check_sealed(cache, report)
    stream = TokenStream(cache)
    places = [(group, shard) for group in GROUPS for shard in cache.extent.indices(group)]
    for group, shard in tqdm(places, "verify", unit="shard", disable=None):
        arrays = check_shard(cache, group, shard, report)
        if deep and arrays is not None:
            check_values(cache, group, shard, arrays, report)
            stream.add(group, shard, arrays)
    if deep:
        report.damage += [Damage(message) for message in (*stream.errors(), *tokenizer_errors(cache))]
    check_names(cache, report)
    if rerun is not None:
        check_teacher(cache, rerun, report)
    return report


def prepare_rerun(cache: Cache, settings: RecheckSettings) -> "Rerun":
    from cache_tools.teacher.recheck import Rerun

    return Rerun(cache, settings)


def check_sealed(cache: Cache, report: Report) -> None:
    for name, record in cache.seal.files.items():
        try:
            data = read_bounded(inside(cache.root, name), record.size)
        except CometError as error:
            report.damage.append(Damage(str(error)))
        else:
            report.sound(cache.root / name, data, record.matches(data), None)
    if report.deep:
        try:
            report.damage += [Damage(message) for message in vocabulary_errors(cache.vocabulary, cache.recipe)]
        except CometError as error:
            report.damage.append(Damage(str(error)))


def check_shard(cache: Cache, group: str, shard: int, report: Report) -> Arrays | None:
    """Its arrays, if it is committed and every file of it is sound; decoded only where the report is deep."""
    place = (group, shard)
    try:
        record = cache.record(group, shard)
        if record is None:
            report.missing += 1
            if (cache.root / cache.specs[group][TOKEN_ARRAYS[0]].chunk_path(shard)).exists():
                cache.read_tokens(group, shard)
            return None
    except CometError as error:
        report.damage.append(Damage(str(error), place))
        return None
    report.shards += 1
    report.files += 1
    arrays, sound = {}, True
    for name in cache.extent.arrays:
        spec = cache.specs[group][name]
        path = cache.root / spec.chunk_path(shard)
        try:
            data = read_bounded(inside(cache.root, spec.chunk_path(shard)), max_file_bytes(spec))
            sound &= report.sound(path, data, record.files[name].matches(data), place)
            if report.deep and sound:
                arrays[name] = decode_chunk(spec, data, cache.recipe.shard_rows(group, shard))
        except CometError as error:
            report.damage.append(Damage(str(error), place))
            sound = False
    return arrays if sound and report.deep else None


def check_values(cache: Cache, group: str, shard: int, arrays: Arrays, report: Report) -> None:
    where = f"{cache.root}: shard {group} {shard}"
    try:
        check_ranges(arrays, cache.recipe, where)
        found = [f"{where}: {m}" for m in shard_errors(arrays, cache.recipe, group, shard, cache.vocabulary.id)]
    except CometError as error:
        found = [str(error)]
    report.damage += [Damage(message, (group, shard)) for message in found]


class TokenStream:
    """The unmasked rows of view 0 in their order, and how often each token occurs in them."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.keys: dict[str, list[NDArray[np.uint64]]] = {group: [] for group in GROUPS}
        self.counts = np.zeros(cache.recipe.vocab_size, dtype=np.int64)

    def add(self, group: str, shard: int, arrays: Arrays) -> None:
        if not arrays.keys() >= set(TOKEN_ARRAYS):
            return
        recipe = self.cache.recipe
        of_view_0 = recipe.rows(group) // recipe.views - shard * recipe.rows_per_shard
        if of_view_0 > 0:
            tokens, length = unmasked(arrays)[:of_view_0], arrays["length"][:of_view_0]
            self.keys[group].append(content_keys(tokens, length))
            inside = np.arange(recipe.seq_len) < length[:, None]
            self.counts += np.bincount(tokens[inside], minlength=recipe.vocab_size)

    def errors(self) -> Iterator[str]:
        """What does not agree with the recipe and the vocabulary; nothing where this copy does not hold all rows."""
        recipe = self.cache.recipe
        if any(sum(map(len, self.keys[g])) != recipe.rows(g) // recipe.views for g in GROUPS):
            return
        digest = hashlib.sha256()
        for group in GROUPS:
            digest.update(b"".join(keys.astype("<u8").tobytes() for keys in self.keys[group]) + group.encode())
        if digest.hexdigest() != recipe.tokens_sha256:
            yield f"{self.cache.root}: the rows are not the token stream that the recipe knows of"
        self.counts[list(recipe.special_ids)] = 0
        ids, count = self.cache.vocabulary.id, self.cache.vocabulary.count
        if not np.array_equal(self.counts[ids], count) or self.counts.sum() != count.sum():
            yield f"{self.cache.root}: vocabulary/count: not how often the tokens occur in the rows"


def tokenizer_errors(cache: Cache) -> Iterator[str]:
    """Whether the tokenizer is the one of the recipe. Needs the tokenizers library, which reading does not."""
    from cache_tools.teacher.tokenizer import backend_sha256, read_backend

    path = f"{TOKENIZER}/tokenizer.json"
    try:
        data = read_bounded(inside(cache.root, path), cache.seal.files[path].size)
        parse_tokenizer(data, cache.recipe.vocab_size, path)
        found = backend_sha256(read_backend(data, path))
    except CometError as error:
        yield f"{cache.root}: {error}"
        return
    if found != cache.recipe.tokenizer_sha256:
        yield f"{cache.root / path}: tokenizer sha256: expected {cache.recipe.tokenizer_sha256}, found {found}"


def check_teacher(cache: Cache, rerun: "Rerun", report: Report) -> None:
    """Runs the teacher again on shards that nothing is wrong with yet."""
    try:
        seen = cache.vocabulary.id
    except CometError:  # reported already
        report.notes.append("the teacher was not run again: the vocabulary that it needs is damaged")
        return
    damaged = set(report.damaged_shards)
    places = [(group, shard) for group in GROUPS for shard in cache.extent.indices(group)]
    found = rerun.over([p for p in places if p not in damaged and cache.record(*p) is not None], seen)
    report.runs = rerun.runs
    report.damage += [Damage(f"{cache.root}: shard {p[0]} {p[1]}: {message}", p) for p, message in found]


def check_names(cache: Cache, report: Report) -> None:
    """Everything in the folder belongs to the cache, and nothing is a link or anything but a file."""
    known, uncommitted = {*cache.seal.files, SEAL, EXTENT, LOCK, CARD}, set[str]()
    for group in GROUPS:
        for shard in cache.extent.indices(group):
            committed = (cache.root / shard_record_path(group, shard)).exists()
            known.add(shard_record_path(group, shard))
            for name, spec in cache.specs[group].items():
                if name not in cache.extent.arrays and (committed or name in TEXT_ARRAYS):
                    continue
                (known if committed or name in TOKEN_ARRAYS else uncommitted).add(spec.chunk_path(shard))
    attached = files_attached(cache)
    more = 0
    for relative, path in files_below(cache.root):
        if path.is_symlink() or not path.is_file():
            report.damage.append(Damage(f"{path}: a link or a special file; a cache holds files only"))
        elif relative in uncommitted:
            report.notes.append(f"{relative}: of a shard that was not committed; the next build replaces it")
        elif relative.startswith(STAGING):
            report.notes.append(f"{relative}: of a builder at work, or killed; the next build removes it")
        elif relative in attached and is_file_of(attached[relative], path):
            report.notes.append(f"{relative}: of a text that is being attached; nothing reads it before that has ended")
        elif relative in known:
            continue
        elif (found := beyond_extent(cache, relative)) is not None:
            more += 1
            check_beyond(cache, *found, report)
        else:
            report.damage.append(Damage(f"{path}: unknown file; it belongs to nothing in this cache"))
    if more:
        report.notes.append(
            f"{more} files of shards or arrays that this copy is not meant to hold yet: of a pull that is under way or "
            "was stopped; the same pull goes on with it"
        )


def beyond_extent(cache: Cache, relative: str) -> tuple[Place, str | None] | None:
    """Of which shard of the whole cache a file is, and of which array, None for its record; None for other names."""
    for number, group in product({int(n) for n in re.findall("[0-9]{1,9}", relative)}, GROUPS):
        if number >= cache.recipe.shards(group):
            continue
        if relative == shard_record_path(group, number):
            return (group, number), None
        for name, spec in cache.specs[group].items():
            if relative == spec.chunk_path(number):
                return (group, number), name
    return None


def check_beyond(cache: Cache, place: Place, name: str | None, report: Report) -> None:
    """A file that came before the extent that names it: a transfer gives it its name only when it is whole."""
    group, shard = place
    try:
        record = cache.record(group, shard)
        if record is None or name is None:
            return
        path = cache.specs[group][name].chunk_path(shard)
        data = read_bounded(inside(cache.root, path), record.files[name].size)
        report.sound(cache.root / path, data, record.files[name].matches(data), place)
    except CometError as error:
        report.damage.append(Damage(str(error), place))


def files_attached(cache: Cache) -> dict[str, FileRecord]:
    """The files that a detached cache has while its text is attached, or after that was stopped."""
    found: dict[str, FileRecord] = {}
    for group in GROUPS:
        for shard in cache.extent.indices(group):
            try:
                record = cache.record(group, shard)
            except CometError:  # reported already
                continue
            lacking = [name for name in TOKEN_ARRAYS if name not in cache.extent.arrays]
            if record is not None:
                found |= {cache.specs[group][name].chunk_path(shard): record.files[name] for name in lacking}
    return found


def is_file_of(record: FileRecord, path: Path) -> bool:
    return path.stat().st_size == record.size and record.matches(read_bounded(path, record.size))


def files_below(root: Path) -> Iterator[tuple[str, Path]]:
    """Everything under a folder that is not a folder, by relative path, no link followed."""
    for folder, names, files in os.walk(root):
        for name in [*files, *(n for n in names if (Path(folder) / n).is_symlink())]:
            path = Path(folder) / name
            yield path.relative_to(root).as_posix(), path
