"""Whether a cache is what its ledger says, file by file, and, in depth, whether its values can be right; with a teacher
whether it gives them again."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.settings import RecheckSettings
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.bounds import check_ranges
from cache_tools.store.layout import decode_chunk, max_file_bytes
from cache_tools.store.ledger import TOKENIZER, ShardKey
from cache_tools.store.provenance import attach_call
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import inside, read_bounded
from cache_tools.store.tokenizer import parse_tokenizer
from cache_tools.text.masking import content_keys
from cache_tools.verify.report import Damage, Report
from cache_tools.verify.unexpected_files import check_names
from cache_tools.verify.values import Arrays, shard_errors, unmasked, vocabulary_errors

if TYPE_CHECKING:  # it needs torch, which reading does not
    from cache_tools.verify.rerun import TeacherRerun


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
    for group, shard in tqdm(cache.extent.keys(), "verify", unit="shard", disable=None):
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


def prepare_rerun(cache: Cache, settings: RecheckSettings) -> "TeacherRerun":
    from cache_tools.verify.rerun import TeacherRerun

    return TeacherRerun(cache, settings)


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
    key = ShardKey(group, shard)
    try:
        record = cache.record(group, shard)
        if record is None:
            report.missing += 1
            if (cache.root / cache.specs[group][TOKEN_ARRAYS[0]].chunk_path(shard)).exists():
                cache.read_tokens(group, shard)
            return None
    except CometError as error:
        report.damage.append(Damage(str(error), key))
        return None
    report.shards += 1
    report.files += 1
    arrays, sound = {}, True
    for name in cache.extent.arrays:
        spec = cache.specs[group][name]
        path = cache.root / spec.chunk_path(shard)
        try:
            data = read_bounded(inside(cache.root, spec.chunk_path(shard)), max_file_bytes(spec))
            sound &= report.sound(path, data, record.files[name].matches(data), key)
            if report.deep and sound:
                arrays[name] = decode_chunk(spec, data, cache.recipe.shard_rows(group, shard))
        except CometError as error:
            report.damage.append(Damage(str(error), key))
            sound = False
    return arrays if sound and report.deep else None


def check_values(cache: Cache, group: str, shard: int, arrays: Arrays, report: Report) -> None:
    where = f"{cache.root}: shard {group} {shard}"
    try:
        check_ranges(arrays, cache.recipe, where)
        found = [f"{where}: {m}" for m in shard_errors(arrays, cache.recipe, group, shard, cache.vocabulary.id)]
    except CometError as error:
        found = [str(error)]
    report.damage += [Damage(message, ShardKey(group, shard)) for message in found]


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
    from cache_tools.text.tokenizer import backend_sha256, read_backend

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


def check_teacher(cache: Cache, rerun: "TeacherRerun", report: Report) -> None:
    """Run the teacher again on shards that nothing is wrong with yet."""
    try:
        seen = cache.vocabulary.id
    except CometError:  # reported already
        report.notes.append("the teacher was not run again: the vocabulary that it needs is damaged")
        return
    damaged = set(report.damaged_shards)
    found = rerun.over([p for p in cache.extent.keys() if p not in damaged and cache.record(*p) is not None], seen)
    report.runs = rerun.runs
    report.damage += [Damage(f"{cache.root}: shard {p[0]} {p[1]}: {message}", p) for p, message in found]
