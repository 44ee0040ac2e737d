"""Find the text files and data sets that options name: files, folders and the hub."""

from itertools import chain
from os.path import exists  # unlike that of Path it takes names that no disk has
from pathlib import Path

from tqdm import tqdm

from cache_tools.errors import CometError, visible
from cache_tools.places.destinations import SEAL, enclosing_cache
from cache_tools.places.foreign import is_left_by_system, named
from cache_tools.settings import is_hub_text
from cache_tools.text.compressed import COMPRESSIONS
from cache_tools.text.files.text_file import FORMATS, TextFile, text_format
from cache_tools.text.hub_text import HubText, parse_hub_text


def find_texts(given: tuple[str, ...]) -> tuple[TextFile | HubText, ...]:
    """Return the sources of `--text`, in order: files, those of folders, and data sets of the hub.

    Raises CometError as `find_sources` and `parse_hub_text` do.
    """
    found = ((parse_hub_text(one),) if is_hub_text(one) else find_sources((one,)) for one in given)
    return tuple(chain.from_iterable(found))


def find_sources(
    paths: tuple[str, ...], option: str = "--text", formats: tuple[str, ...] = FORMATS
) -> tuple[TextFile, ...]:
    """Return the files of these formats at `paths` (files or folders), those of a folder in the order of their names.

    Raises CometError if a path does not exist, a file has another ending, or a folder holds no such file.
    """
    sources: list[TextFile] = []
    for given in paths:
        path = Path(given)
        if not given.strip() or not exists(path):
            raise CometError(f"{option} {given}: no such file or folder", exit_code=2)
        if not path.is_file() and not path.is_dir():
            raise CometError(
                f"{option} {given}: not a file that can be read twice; write a pipe's content to a file first",
                exit_code=2,
            )
        if (cache := enclosing_cache(path)) is not None:
            raise CometError(f"{option} {given}: lies in the cache {cache}, whose files are not texts", exit_code=2)
        files = _files_of_folder(path, option, formats) if path.is_dir() else [path]
        if not files:
            raise CometError(f"{option} {given}: the folder holds no {', '.join(formats)} file", exit_code=2)
        for file in files:
            if text_format(file) not in formats:
                raise CometError(
                    f"{option} {given}: expected {', '.join(formats)} (all but .parquet also with "
                    f"{', '.join(COMPRESSIONS)}), found {file.name!r}; save it as .txt, one document per line",
                    exit_code=2,
                )
            sources.append(TextFile(file, file.name, file.stat().st_size))
    return tuple(sources)


def _files_of_folder(folder: Path, option: str, formats: tuple[str, ...]) -> list[Path]:
    """Return the files of these formats below a folder by name, without hidden ones and those of caches; print the
    names of others."""
    found = []
    caches = {seal.parent.parent for seal in folder.rglob(SEAL)}
    others = [cache.relative_to(folder).as_posix() for cache in sorted(caches)]
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") or is_left_by_system(part) for part in path.relative_to(folder).parts):
            continue  # a system's or a notebook's own copies
        if not caches.isdisjoint(path.parents):
            continue
        if path.is_file() and text_format(path) in formats:
            found.append(path)
        elif not path.is_dir() or path.is_symlink():
            others.append(path.relative_to(folder).as_posix())
    if others and found:
        tqdm.write(
            visible(
                f"{option} {folder}: left out for their endings, as caches, or as links to folders: {named(others)}"
            )
        )
    return found
