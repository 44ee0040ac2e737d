"""What a build takes from the hub, pinned to commits before it begins, so that it is the same whenever it goes on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from cache_tools.errors import visible
from cache_tools.settings import BuildSettings, is_hub_text
from cache_tools.store.reader import open_cache
from cache_tools.teacher.model import teacher_folder, teacher_licence
from cache_tools.text.hub import COMMIT, at_commit, split_revision
from cache_tools.text.hub_text import HubText, parse_hub_text, pin_revision


def pinned(settings: BuildSettings, elsewhere: Mapping[str, Any] = MappingProxyType({})) -> BuildSettings:
    """The same settings with a commit behind every name of the hub: that of a cache that is begun, else the newest.

    `elsewhere` is the provenance of the cache where it is begun in another place.
    For a new cache says in a line what text comes from the hub, under which licence and how much of it, and in
    another which teacher. Raises CometError when the hub does not have them or cannot be reached.
    """
    begun = open_cache(settings.out).provenance if settings.out.exists() else elsewhere
    texts = {name: pinned_text(parse_hub_text(name), begun) for name in settings.text if is_hub_text(name)}
    if texts and not begun:
        named = ", ".join(f"{text.name} ({str(text.revision)[:7]}; {text.licence()})" for text in texts.values())
        tqdm.write(f"text: {visible(named)}; the first {settings.token_limit:,} tokens of it (--max-tokens)")
    teacher = pinned_teacher(settings.teacher, begun)
    if not Path(teacher).is_dir() and not begun:
        name, revision = split_revision(teacher)
        tqdm.write(f"teacher: {name} ({str(revision)[:7]}; {visible(teacher_licence(teacher))})")
    return replace(
        settings, text=tuple(texts[t].at_revision if t in texts else t for t in settings.text), teacher=teacher
    )


def pinned_text(text: HubText, begun: Mapping[str, Any]) -> HubText:
    recorded = {entry.get("name"): entry.get("revision") for entry in begun.get("text", [])}
    if text.revision is None and is_commit(revision := recorded.get(text.name)):
        return replace(text, revision=revision)
    return pin_revision(text)


def pinned_teacher(name: str, begun: Mapping[str, Any]) -> str:
    repository, revision = split_revision(name)
    if revision is None and begun.get("teacher") == repository and is_commit(begun.get("teacher_revision")):
        return f"{repository}@{begun['teacher_revision']}"
    return at_commit(name, teacher_folder(name))


def is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and COMMIT.fullmatch(revision) is not None
