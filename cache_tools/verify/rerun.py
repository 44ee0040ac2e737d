"""`comet-cache verify --teacher`: rerun the teacher on some rows and compare with the cache's values."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.models import choose_device
from cache_tools.progress import show_progress
from cache_tools.settings import RerunSettings
from cache_tools.signals import DTYPES, TOKEN_ARRAYS, UNUSED_POSITION, kept_signals
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.teacher.comparison import Arrays
from cache_tools.teacher.device import choose_batch_size, choose_dtype, numerics, smaller_batch
from cache_tools.teacher.forward import TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.identity import identity_differences
from cache_tools.teacher.model import load_teacher
from cache_tools.teacher.signals import errors_of
from cache_tools.text.draws import mix
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.verify.tolerance import Deviations


class TeacherRerun:
    """The teacher of a cache, ready to run on rows of it, and the deviations by dtypes and kinds of device.

    Raises CometError on creation if the teacher is another one, naming each field that differs, or if this copy does
    not hold the tokens or any signal.
    """

    def __init__(self, cache: Cache, settings: RerunSettings) -> None:
        self.cache, self.settings = cache, settings
        self.names, self.device = _compared_arrays(cache), choose_device(settings.device)
        self.runs: dict[tuple[str, str, str, str], Deviations] = {}
        name = settings.teacher
        self.teacher, tokenizer = load_teacher(name), load_teacher_tokenizer(name)
        if differences := identity_differences(cache.recipe, self.teacher, tokenizer):
            raise CometError(
                f"--teacher {name}: not the teacher of {cache.root}: {'; '.join(differences)}; "
                "give the one that it was built with",
                exit_code=2,
            )

    def run(self, keys: Sequence[ShardKey], seen: NDArray[np.int32]) -> list[tuple[ShardKey, str]]:
        """Run the teacher on a sample of rows of these committed shards. Return the errors, each with its shard.

        `seen` are the ids of the corpus.
        """
        recipe, settings, device = self.cache.recipe, self.settings, self.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        chosen = sample_rows(recipe, keys, settings.rows, settings.seed)
        errors: list[tuple[ShardKey, str]] = []
        by_dtype: dict[str, list[ShardKey]] = {}
        for key in chosen:
            built_in, _ = self.built(key)
            if built_in not in DTYPES:
                errors.append((key, f"its commit record has dtype {built_in}, expected {', '.join(DTYPES)}"))
            else:
                by_dtype.setdefault(dtype_to_run_in(built_in, settings.dtype, device), []).append(key)
        with show_progress(what="teacher", unit="row", total=sum(map(len, chosen.values()))) as bar:
            for turn, (run_in, shards) in enumerate(sorted(by_dtype.items())):
                if turn:  # the weights were rounded to the previous dtype
                    self.teacher = load_teacher(settings.teacher)
                dtype: torch.dtype = getattr(torch, run_in)
                batch_size = settings.batch_size or choose_batch_size(self.teacher, recipe.seq_len, device, dtype)
                teacher = self.teacher.to(device, dtype)
                teacher_pass = TeacherPass(teacher, recipe, seen_mask(seen, recipe.vocab_size))
                for key in shards:
                    messages, batch_size = self.compare(key, chosen[key], teacher_pass, dtype, batch_size)
                    errors += [(key, message) for message in messages]
                    bar.update(len(chosen[key]))
        return errors

    def compare(
        self, key: ShardKey, numbers: NDArray[np.int64], teacher_pass: TeacherPass, dtype: torch.dtype, batch_size: int
    ) -> tuple[list[str], int]:
        """Return the errors of these rows of a shard, and the batch size, smaller if memory ran out."""
        try:
            stored = {name: array[numbers] for name, array in self.cache.read_shard(*key, self.names).items()}
        except CometError as error:
            return [str(error)], batch_size
        parts: list[Arrays] = []
        start = 0
        while start < len(numbers):
            rows = slice(start, start + batch_size)
            try:
                parts.append(recompute(teacher_pass, {n: a[rows] for n, a in stored.items()}))
                start = rows.stop
            except RuntimeError as error:
                batch_size = smaller_batch(error, batch_size)
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        now = numerics(self.device, dtype, batch_size)
        kind = (*self.built(key), now["dtype"], now["device"])
        run = self.runs.setdefault(kind, Deviations(*kind))
        return run.add(len(numbers), errors_of(stored, found, self.cache.recipe)), batch_size

    def built(self, key: ShardKey) -> tuple[str, str]:
        """Return the dtype and the kind of device that a committed shard was built with."""
        record = self.cache.record(*key)
        recorded = record.numerics if record is not None else {}
        return recorded.get("dtype", "unknown"), recorded.get("device", "unknown")


def _compared_arrays(cache: Cache) -> tuple[str, ...]:
    """Return the arrays of this copy that a rerun reads or compares. Raises CometError as `TeacherRerun` does."""
    tokens, held = ("input_ids", "length", "target_position", "row_key"), set(cache.extent.arrays)
    kept = kept_signals(cache.recipe)
    signals = [name for signal in kept if held >= set(signal.arrays) for name in signal.arrays]
    if "input_ids" not in held:
        cache.require_text()
    if not held >= set(tokens) or not signals:
        raise CometError(
            f"{cache.root}: this copy holds {', '.join(cache.extent.arrays)}; to run the teacher again expected "
            f"{', '.join(tokens)}, and {' or '.join(', '.join(signal.arrays) for signal in kept)}; verify a copy that "
            "has them",
            exit_code=2,
        )
    return (*tokens, *signals)


def dtype_to_run_in(built_in: str, requested: str, device: torch.device) -> str:
    """Return the requested dtype; `auto` is the shard's own, but float32 on a GPU without bfloat16."""
    if requested != "auto":
        return requested
    lacks_bfloat16 = device.type == "cuda" and choose_dtype("auto", device) != torch.bfloat16
    return "float32" if built_in == "bfloat16" and lacks_bfloat16 else built_in


def sample_rows(recipe: Recipe, keys: Sequence[ShardKey], rows: int, seed: int) -> dict[ShardKey, NDArray[np.int64]]:
    """Return the rows to compare of each of these shards, ascending: `rows` in all, or all rows if there are fewer.

    A pure function of recipe, seed and shards. The rows are spread as evenly as possible over as many shards as
    possible, and the two groups take turns, so that the small validation group is also compared.
    """
    recipe_hash = np.array([int(recipe.recipe_id[:16], 16)], dtype=np.uint64)
    seeded = {group: mix(mix(recipe_hash, np.uint64(seed)), np.uint64(GROUPS.index(group))) for group in GROUPS}
    turns: list[tuple[int, str, int]] = []
    for group in GROUPS:
        ordered = sorted((int(mix(seeded[group], np.uint64(s))[0]), s) for g, s in keys if g == group)
        turns += [(turn, group, shard) for turn, (_, shard) in enumerate(ordered)]
    share = {ShardKey(group, shard): 0 for _, group, shard in sorted(turns)}
    left = min(rows, sum(recipe.shard_rows(*key) for key in keys))
    while left:
        for key, taken in share.items():
            if left and taken < recipe.shard_rows(*key):
                share[key], left = taken + 1, left - 1
    chosen = {}
    for key, count in share.items():
        if count:
            numbers = np.arange(recipe.shard_rows(*key), dtype=np.uint64)
            order = np.argsort(mix(mix(seeded[key.group], np.uint64(key.shard)), numbers), kind="stable")
            chosen[key] = np.sort(order[:count])
    return chosen


@torch.inference_mode()
def recompute(teacher_pass: TeacherPass, stored: Arrays) -> Arrays:
    """Return the teacher's arrays of the rows `stored`, computed as in a build, and those that only the comparison
    needs."""
    tokens = {name: stored[name] for name in TOKEN_ARRAYS if name in stored}
    launched = teacher_pass.launch(host_batch(teacher_pass.recipe, tokens))
    found = collect(launched)
    used = stored["target_position"] != UNUSED_POSITION  # [R, M]
    for kept in kept_signals(teacher_pass.recipe):
        if stored.keys() >= kept.arrays.keys() and kept.family == "logits":
            at_targets = {name: stored[name][used] for name in kept.arrays}
            signal = teacher_pass.signals[kept.name]
            for name, values in signal.recompute(at_targets, launched.features, teacher_pass.head).items():
                found[name] = np.full((*used.shape, *values.shape[1:]), np.nan, np.float32)
                found[name][used] = values
    return found
