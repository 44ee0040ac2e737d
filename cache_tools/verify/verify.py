"""Checks of a cache: files against the ledger, values against their constraints, signals against a teacher rerun."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.progress import show_progress
from cache_tools.settings import RerunSettings
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.bounds import Arrays, check_ranges
from cache_tools.store.layout import decode_chunk, max_file_bytes
from cache_tools.store.ledger import TOKENIZER, ShardKey
from cache_tools.store.provenance import attach_command
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import inside, read_bounded
from cache_tools.store.tokenizer import parse_tokenizer
from cache_tools.text.masking import content_keys, unmasked
from cache_tools.verify.report import Damage, Report
from cache_tools.verify.start import compare_start, start_errors
from cache_tools.verify.unexpected_files import check_names
from cache_tools.verify.values import shard_errors, vocabulary_errors

if TYPE_CHECKING:  # rerun imports torch, which reading does not need
    from cache_tools.verify.rerun import TeacherRerun


def verify(path: str | Path, deep: bool = False, again: RerunSettings | None = None) -> Report:
    """Check every file against the ledger; with `deep` also every value, and all that can be recomputed; with `again`
    rerun the teacher on rows of the shards that are sound so far.

    Continues after damage, to report all of it. Raises CometError if there is no cache at the path, or if `again` names
    another teacher than the cache's.
    """
    report = Report(Path(path), deep, again)
    try:
        cache = open_cache(path)
    except CometError as error:
        if error.exit_code == 2:
            raise
        report.damage.append(Damage(str(error)))
        return report
    report.is_continued = cache.recipe.continued_views > 1
    if not cache.extent.has_text:
        report.attaching = attach_command(path, cache.provenance)
    rerun = None
    if again is not None:
        from cache_tools.verify.rerun import TeacherRerun

        rerun = TeacherRerun(cache, again)
    _check_sealed(cache, report)
    stream = TokenStream(cache)
    for key in show_progress(cache.extent.keys(), "verify", "shard"):
        arrays = _check_shard(cache, key, report)
        if deep and arrays is not None:
            _check_values(cache, key, arrays, report)
            stream.add(key, arrays)
    if deep:
        report.damage += [Damage(message) for message in (*stream.errors(), *_tokenizer_errors(cache))]
    check_names(cache, report)
    if rerun is not None:
        _check_teacher(cache, rerun, report)
    return report


def _check_sealed(cache: Cache, report: Report) -> None:
    """Check the sealed files; with `report.deep` also the values of the start and the vocabulary."""
    for name, record in cache.seal.files.items():
        try:
            data = read_bounded(inside(cache.root, name), record.size)
        except CometError as error:
            report.damage.append(Damage(str(error)))
        else:
            report.add_file(cache.root / name, data, record.matches(data), None)
    if report.deep:
        report.damage += [Damage(message) for message in start_errors(cache)]
        try:
            report.damage += [Damage(message) for message in vocabulary_errors(cache.vocabulary, cache.recipe)]
        except CometError as error:
            report.damage.append(Damage(str(error)))


def _check_shard(cache: Cache, key: ShardKey, report: Report) -> Arrays | None:
    """Check the files of a shard. With `report.deep`, return its arrays if it is committed and every file is sound."""
    specs = cache.specs[key.group]
    try:
        record = cache.record(*key)
        if record is None:
            report.missing += 1
            if (cache.root / specs[TOKEN_ARRAYS[0]].chunk_path(key.shard)).exists():
                cache.read_tokens(*key)
            return None
    except CometError as error:
        report.damage.append(Damage(str(error), key))
        return None
    report.shards += 1
    report.files += 1
    arrays, sound = {}, True
    for name in cache.extent.arrays:
        spec, path = specs[name], specs[name].chunk_path(key.shard)
        try:
            data = read_bounded(inside(cache.root, path), max_file_bytes(spec))
            sound &= report.add_file(cache.root / path, data, record.files[name].matches(data), key)
            if report.deep and sound:
                arrays[name] = decode_chunk(spec, data, cache.recipe.shard_rows(*key))
        except CometError as error:
            report.damage.append(Damage(str(error), key))
            sound = False
    return arrays if sound and report.deep else None


def _check_values(cache: Cache, key: ShardKey, arrays: Arrays, report: Report) -> None:
    where = f"{cache.root}: shard {key}"
    try:
        check_ranges(arrays, cache.recipe, where)
        errors = [f"{where}: {m}" for m in shard_errors(arrays, cache.recipe, *key, cache.vocabulary.id)]
    except CometError as error:
        errors = [str(error)]
    report.damage += [Damage(message, key) for message in errors]


class TokenStream:
    """The unmasked rows of view 0 in their order, and how often each token occurs: in them, and in all rows of views
    that the teacher continued."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.keys: dict[str, list[NDArray[np.uint64]]] = {group: [] for group in GROUPS}
        self.continued: list[NDArray[np.uint64]] = []
        self.counts = np.zeros(cache.recipe.vocab_size, dtype=np.int64)

    def add(self, key: ShardKey, arrays: Arrays) -> None:
        """Add the shard's rows of view 0, and all that the teacher continued, if the copy holds all token arrays."""
        recipe = self.cache.recipe
        if not arrays.keys() >= set(TOKEN_ARRAYS):
            return
        tokens, length = unmasked(arrays), arrays["length"]  # [R, L], [R]
        of_view_0 = max(recipe.rows(key.group) // recipe.views - key.shard * recipe.rows_per_shard, 0)  # and after it
        self.keys[key.group].append(content_keys(tokens[:of_view_0], length[:of_view_0]))
        counted = of_view_0
        if recipe.continued_views > 1 and key.group == "train":
            self.continued.append(content_keys(tokens, length))
            counted = len(length)
        inside = np.arange(recipe.seq_len) < length[:counted, None]
        self.counts += np.bincount(tokens[:counted][inside], minlength=recipe.vocab_size)

    def errors(self) -> Iterator[str]:
        """Yield differences from the recipe and the vocabulary; none if this copy does not hold all rows."""
        recipe = self.cache.recipe
        if any(sum(map(len, self.keys[g])) != recipe.rows(g) // recipe.views for g in GROUPS):
            return
        digest = hashlib.sha256()
        for group in GROUPS:
            digest.update(b"".join(keys.astype("<u8").tobytes() for keys in self.keys[group]) + group.encode())
        if digest.hexdigest() != recipe.tokens_sha256:
            yield f"{self.cache.root}: the rows are not the token stream of the recipe"
        if sum(map(len, self.continued)) == recipe.train_rows:
            keys = b"".join(keys.astype("<u8").tobytes() for keys in self.continued)
            if hashlib.sha256(keys).hexdigest() != recipe.continued_sha256:
                yield f"{self.cache.root}: the continued rows are not those of the recipe"
        self.counts[list(recipe.special_ids)] = 0
        ids, count = self.cache.vocabulary.id, self.cache.vocabulary.count
        if not np.array_equal(self.counts[ids], count) or self.counts.sum() != count.sum():
            yield f"{self.cache.root}: vocabulary/count: not the counts of the tokens in the rows"


def _tokenizer_errors(cache: Cache) -> Iterator[str]:
    """Yield an error unless the tokenizer is the recipe's. Needs the tokenizers library, which reading does not."""
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


def _check_teacher(cache: Cache, rerun: "TeacherRerun", report: Report) -> None:
    """Compare the start with the teacher's layers, and rerun the teacher on committed shards without damage so far."""
    try:
        report.damage += [Damage(message) for message in compare_start(cache, rerun.teacher, rerun.device)]
    except CometError as error:
        report.notes.append(f"the start was not compared with the teacher: {error}")
    try:
        seen = cache.vocabulary.id
    except CometError:  # reported already
        report.notes.append("the teacher was not run again: the vocabulary is damaged")
        return
    damaged = set(report.damaged_shards)
    errors = rerun.run([key for key in cache.extent.keys() if key not in damaged and cache.record(*key)], seen)
    report.runs = list(rerun.runs.values())
    report.damage += [Damage(f"{cache.root}: shard {key}: {message}", key) for key, message in errors]
