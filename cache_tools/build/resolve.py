"""The inputs of a build, found once and pinned to commits, so that a resumed build has the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CometError, visible
from cache_tools.places.destinations import require_folder
from cache_tools.settings import BuildSettings
from cache_tools.store.provenance import teacher_restriction
from cache_tools.teacher.model import Teacher, load_teacher, teacher_folder, teacher_licence
from cache_tools.text.files.documents import documents
from cache_tools.text.files.text_file import ITEM_FORMATS, TextFile
from cache_tools.text.hub import COMMIT, at_commit, split_revision
from cache_tools.text.hub_text import HubText, pin_revision
from cache_tools.text.languages import find_language
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.text.sources import find_sources, find_texts


@dataclass(frozen=True)
class BuildInputs:
    """Settings with the files and data sets that they name. Each file is hashed once, when its record is first read."""

    settings: BuildSettings
    texts: tuple[TextFile | HubText, ...]
    excluded: tuple[TextFile, ...]

    @cached_property
    def text_records(self) -> list[dict[str, object]]:
        return [text.record() for text in self.texts]

    @cached_property
    def excluded_records(self) -> list[dict[str, object]]:
        return [source.record() for source in self.excluded]

    def text_provenance(self) -> list[dict[str, object]]:
        """Return the records of the texts for the provenance: with the licence, if the text comes from the hub."""
        pairs = zip(self.text_records, self.texts, strict=True)
        return [record | ({"licence": t.licence()} if isinstance(t, HubText) else {}) for record, t in pairs]

    def teacher_provenance(self) -> dict[str, object]:
        """Return the teacher's name, commit and licence for the provenance."""
        name, revision = split_revision(self.settings.teacher)
        if Path(self.settings.teacher).is_dir():
            name, revision = Path(self.settings.teacher).resolve().name, None
        return {
            "teacher": name,
            "teacher_revision": revision,
            "teacher_licence": teacher_licence(self.settings.teacher),
        }

    def load_teacher(self) -> tuple[Teacher, PreTrainedTokenizerFast]:
        """Load the teacher and its tokenizer. Raises CometError as `load_teacher` and `load_teacher_tokenizer` do."""
        lines = chain.from_iterable(map(documents, self.texts))
        tokenizer = load_teacher_tokenizer(self.settings.teacher, lines)  # the weights are read only if it is sound
        return load_teacher(self.settings.teacher), tokenizer


def find_inputs(settings: BuildSettings) -> BuildInputs:
    """Find the inputs. Raises CometError if `settings.language` is no language code, no cache can be created at
    `settings.out`, or there among the texts, and if a text or evaluation file does not exist or has an unknown ending.
    """
    find_language(settings.language)
    require_folder(settings.out, "--out", *settings.local_sources)
    excluded = find_sources(settings.exclude, "--exclude", ITEM_FORMATS)
    return BuildInputs(settings, find_texts(settings.text), excluded)


def at_commits(inputs: BuildInputs, begun: Mapping[str, Any]) -> BuildInputs:
    """Return the same inputs with a commit for every name of the hub: that of a cache already begun, else the newest.

    `begun` is the provenance of that cache, empty for a new one. For a new cache, prints the texts from the hub and the
    teacher, with their licences, and whether that of the teacher restricts its use. Raises CometError if the hub cannot
    provide them, and if a text is given twice.
    """
    texts = tuple(resolve_text(text, begun) if isinstance(text, HubText) else text for text in inputs.texts)
    from_hub = dict.fromkeys(text for text in texts if isinstance(text, HubText))
    if from_hub and not begun:
        named = ", ".join(f"{text.name} ({str(text.revision)[:7]}; {text.licence()})" for text in from_hub)
        tqdm.write(f"text: {visible(named)}; the first {inputs.settings.token_limit:,} tokens of it (--max-tokens)")
    teacher = _resolve_teacher(inputs.settings.teacher, begun)
    if not Path(teacher).is_dir() and not begun:
        name, revision = split_revision(teacher)
        tqdm.write(f"teacher: {name} ({str(revision)[:7]}; {visible(teacher_licence(teacher))})")
    pinned = replace(inputs, texts=texts, settings=replace(inputs.settings, teacher=teacher))
    if not begun and (restriction := teacher_restriction(pinned.teacher_provenance())) is not None:
        tqdm.write(restriction)
    _require_different(pinned)
    return pinned


def _require_different(inputs: BuildInputs) -> None:
    """Raise CometError for a text that is given twice, under whatever name, and would count double."""
    first: dict[tuple[object, ...], str] = {}
    for text, record in zip(inputs.texts, inputs.text_records, strict=True):
        content = (record.get("sha256"), record.get("revision"), None if "sha256" in record else text.name)
        shown = str(text.path) if isinstance(text, TextFile) else text.name
        if record.get("bytes") == 0:
            continue
        if content in first:
            raise CometError(
                f"--text {shown}: the same text as {first[content]}, which would count twice; omit one", exit_code=2
            )
        first[content] = shown


def resolve_text(text: HubText, begun: Mapping[str, Any]) -> HubText:
    """Return a data set at its commit in a cache already begun, else at the newest."""
    recorded = {entry.get("name"): entry.get("revision") for entry in begun.get("text", [])}
    if text.revision is None and _is_commit(revision := recorded.get(text.name)):
        return replace(text, revision=revision)
    return pin_revision(text)


def _resolve_teacher(name: str, begun: Mapping[str, Any]) -> str:
    repository, revision = split_revision(name)
    if revision is None and begun.get("teacher") == repository and _is_commit(begun.get("teacher_revision")):
        return f"{repository}@{begun['teacher_revision']}"
    return at_commit(name, teacher_folder(name))


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and COMMIT.fullmatch(revision) is not None
