"""Tokens that are gone from a cache, or were never part of a copy, made again from the text they came from."""

from dataclasses import replace

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CometError
from cache_tools.prepare import prepare, preparing_prefix
from cache_tools.settings import BuildSettings
from cache_tools.store.claim import claimed_folder
from cache_tools.store.copying import copy_tokens
from cache_tools.store.layout import TOKEN_ARRAYS
from cache_tools.store.reader import Cache, open_cache
from cache_tools.teacher.model import Teacher


def lost_tokens(cache: Cache, shards: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of these shards of which a file of tokens is not there."""

    def is_there(group: str, shard: int) -> bool:
        specs = cache.specs[group]
        return all((cache.root / specs[name].chunk_path(shard)).is_file() for name in TOKEN_ARRAYS)

    return [place for place in shards if not is_there(*place)]


def restore_tokens(
    cache: Cache,
    shards: list[tuple[str, int]],
    settings: BuildSettings,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Prepares the text once more and takes the tokens of these shards from it.

    Raises CometError as `prepare` does, and when the text gives other tokens than the sealed ones.
    """
    tqdm.write(f"the tokens of {len(shards)} shards are not there; making them again from the text")
    out = settings.out
    with claimed_folder(out.parent, preparing_prefix(out)) as work:
        prepare(replace(settings, out=work / "again"), teacher, tokenizer)
        again = open_cache(work / "again")
        if differences := cache.recipe.differences(again.recipe):
            raise CometError(f"{out}: the text now gives another cache ({'; '.join(differences)}); nothing was changed")
        for group, shard in shards:
            copy_tokens(again, cache.root, group, shard)
