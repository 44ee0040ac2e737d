"""Files in the folder of a cache that are not part of this copy: abandoned, in transfer, or unknown."""

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.places.foreign import is_left_by_system, named
from cache_tools.signals import TEXT_ARRAYS, TOKEN_ARRAYS
from cache_tools.store.ledger import CARD, EXTENT, LOCK, SEAL, ShardKey, shard_record_path
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import inside, read_bounded
from cache_tools.store.staging import STAGING
from cache_tools.verify.report import Damage, Report


def check_names(cache: Cache, report: Report) -> None:
    """Report files that do not belong to the cache, links and special files as damage; abandoned files as notes."""
    known, uncommitted = {*cache.seal.files, SEAL, EXTENT, LOCK, CARD}, set[str]()
    for group in GROUPS:
        for shard in cache.extent.indices(group):
            committed = (cache.root / shard_record_path(group, shard)).exists()
            known.add(shard_record_path(group, shard))
            for name, spec in cache.specs[group].items():
                if name not in cache.extent.arrays and (committed or name in TEXT_ARRAYS):
                    continue
                (known if committed or name in TOKEN_ARRAYS else uncommitted).add(spec.chunk_path(shard))
    incoming = text = 0
    left: list[str] = []
    for relative, path in _files_below(cache.root, left):
        if path.is_symlink() or not path.is_file():
            own = relative in known or relative in uncommitted  # its content was not checked by following a link
            report.damage.append(Damage(f"{path}: a link or a special file; a cache holds files only", foreign=not own))
        elif relative in uncommitted:
            report.notes.append(f"{relative}: of an uncommitted shard; the next build replaces it")
        elif relative.startswith(STAGING):
            report.notes.append(f"{relative}: of a running or killed builder; the next build removes it")
        elif relative in known:
            continue
        elif (owner := _beyond_extent(cache, relative)) is not None:
            if owner[1] in TEXT_ARRAYS and not cache.extent.has_text:
                text += 1
            else:
                incoming += 1
            _check_beyond(cache, *owner, report)
        else:
            report.damage.append(Damage(f"{path}: unknown file; it belongs to nothing in this cache", foreign=True))
    if left:
        report.notes.append(
            f"not part of the cache, and no damage: {named(sorted(left))}, which systems leave in folders"
        )
    if incoming:
        report.notes.append(
            f"{incoming} files of shards or arrays that this copy is not meant to hold yet: of a pull that is under "
            "way or was stopped; the same pull continues with them"
        )
    if text:
        report.notes.append(
            f"{text} files of the text, which this copy is not meant to hold: of an attach or a pull that is under "
            "way or was stopped; nothing reads them before it ends"
        )


def _beyond_extent(cache: Cache, relative: str) -> tuple[ShardKey, str | None] | None:
    """Return the file's shard in the whole cache and its array, None for a commit record; None for any other file."""
    for number, group in product({int(n) for n in re.findall("[0-9]{1,9}", relative)}, GROUPS):
        if number >= cache.recipe.shards(group):
            continue
        if relative == shard_record_path(group, number):
            return ShardKey(group, number), None
        for name, spec in cache.specs[group].items():
            if relative == spec.chunk_path(number):
                return ShardKey(group, number), name
    return None


def _check_beyond(cache: Cache, key: ShardKey, name: str | None, report: Report) -> None:
    """Check a file outside the extent against its shard's record: a transfer names only whole files."""
    try:
        record = cache.record(*key)
        if record is None or name is None:
            return
        path = cache.specs[key.group][name].chunk_path(key.shard)
        data = read_bounded(inside(cache.root, path), record.files[name].size)
        report.add_file(cache.root / path, data, record.files[name].matches(data), key)
    except CometError as error:
        report.damage.append(Damage(str(error), key))


def _files_below(root: Path, left: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield everything under a folder that is not a folder, with its relative path; follow no link. Files and folders
    that systems leave are added to `left` instead."""
    for folder, names, files in os.walk(root):
        own = [name for name in (*names, *files) if is_left_by_system(name)]
        left += [(Path(folder) / name).relative_to(root).as_posix() for name in own]
        names[:] = [name for name in names if name not in own]
        files = [name for name in files if name not in own]
        for name in [*files, *(n for n in names if (Path(folder) / n).is_symlink())]:
            path = Path(folder) / name
            yield path.relative_to(root).as_posix(), path
