"""The provenance of a cache: names and licences of its sources, beside its recipe. Checked for types, not for truth."""

import re
import shlex
from collections.abc import Mapping
from itertools import chain
from typing import Any

from cache_tools.errors import CometError, printable
from cache_tools.settings import LARGEST_BATCH
from cache_tools.signals import DTYPES

TEXTS = ("language_name", "teacher", "teacher_revision", "teacher_licence")
COUNTS = ("text_tokens", "unknown_tokens", "documents", "max_tokens", "excluded_documents", "excluded_run_words")
SOURCES = ("text", "excluded")
SOURCE_TEXTS = ("name", "revision", "licence")
OF_EXCLUSION = ("documents", "excluded_documents", "excluded_run_words")
MOST_NAMED = 3  # texts in one command
NOT_FREE = re.compile(r"\b(nc|non-?commercial|research|other|proprietary|gated)\b")


def restricts_use(licence: str) -> bool:
    """Return whether a licence by its name restricts what may be done under it."""
    return NOT_FREE.search(licence.lower()) is not None


def teacher_name(provenance: Mapping[str, Any]) -> str:
    """Return the teacher's name on the hub, or the folder that it was in."""
    name = str(provenance.get("teacher"))
    return name if provenance.get("teacher_revision") is not None else f"a teacher in the folder {name}"


def teacher_restriction(provenance: Mapping[str, Any]) -> str | None:
    """Return a sentence if the licence of a cache's teacher restricts its use, None otherwise."""
    licence = printable(provenance.get("teacher_licence") or "")
    if not restricts_use(licence):
        return None
    teacher = printable(provenance.get("teacher") or "")
    return f"the licence of the teacher {teacher} ({licence}) restricts its use, and that of students made from it"


def check_provenance(provenance: Any, settings: Any, where: str) -> None:
    """Raise CometError, naming the field, for a value of another type than a build writes.

    All may be absent or null, except the counts that go with excluded documents.
    """

    def require(ok: bool, name: str, expected: str, found: Any) -> None:
        if not ok:
            raise CometError(f"{where}: provenance: {name}: expected {expected}, found {str(found)[:80]!r}")

    for name, value in (("provenance", provenance), ("settings", settings)):
        require(isinstance(value, dict), name, "an object", value)
    for name in TEXTS:
        require(_is_text(provenance.get(name)), name, "a string", provenance.get(name))
    code = provenance.get("language", "und")
    is_code = isinstance(code, str) and 2 <= len(code) <= 3 and code.isascii() and code.isalpha()
    require(is_code, "language", "a code of two or three letters", code)
    for name in COUNTS:
        require(provenance.get(name) is None or _is_count(provenance[name]), name, "a count", provenance.get(name))
    for name in SOURCES:
        sources = provenance.get(name, [])
        ok = isinstance(sources, list) and all(isinstance(source, dict) for source in sources)
        ok = ok and all(_is_text(source.get(field)) for source in sources for field in SOURCE_TEXTS)
        ok = ok and all(source.get("tokens") is None or _is_count(source["tokens"]) for source in sources)
        require(ok, name, "a list of named sources", sources)
    for name in OF_EXCLUSION if provenance.get("excluded") else ():
        require(_is_count(provenance.get(name)), name, "a count", provenance.get(name))
    require(settings.get("dtype") in (None, *DTYPES), "dtype", " or ".join(DTYPES), settings.get("dtype"))
    batch = settings.get("batch_size")
    require(batch is None or (_is_count(batch) and 0 < batch <= LARGEST_BATCH), "batch_size", "a number of rows", batch)


def texts_read(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the texts that a cache holds tokens of: not of those after `--max-tokens` was reached."""
    return [text for text in provenance.get("text", []) if text.get("tokens") != 0]


def attach_command(folder: object, provenance: dict[str, Any]) -> str:
    """Return the shell command that attaches the text to a detached cache; control characters are not escaped."""
    texts = [text["name"] for text in texts_read(provenance) if text.get("name")]
    if not 0 < len(texts) <= MOST_NAMED:
        texts = ["FILE_OR_FOLDER"]
    excluded = [source["name"] for source in provenance.get("excluded", []) if source.get("name")]
    if len(excluded) > MOST_NAMED:
        excluded = ["FILE_OR_FOLDER"]
    options = [("--text", name) for name in texts] + [("--exclude", name) for name in excluded]
    return shlex.join(["comet-cache", "attach", str(folder), *chain.from_iterable(options)])


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def describe_exclusion(provenance: dict[str, Any]) -> str:
    """Return how many documents of the text `--exclude` left out, of how many, and why; or that it was not given."""
    if not provenance.get("excluded"):
        return "nothing, since no evaluation files were given (--exclude)"
    count, files = provenance["excluded_documents"], len(provenance["excluded"])
    total, words = count + provenance["documents"], provenance["excluded_run_words"]
    plural = "s" if files > 1 else ""
    return f"{count:,} of {total:,} documents that share {words} words in a row with {files} evaluation file{plural}"


def name_exclusion(provenance: dict[str, Any]) -> str:
    """Return `describe_exclusion` with the names of the evaluation files."""
    names = ", ".join(str(one.get("name")) for one in provenance.get("excluded", []))
    return describe_exclusion(provenance) + (f": {names}" if names else "")
