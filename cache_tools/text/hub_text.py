"""Documents of a data set of the Hugging Face hub, `hf:NAME[@REVISION][:CONFIG]`, streamed at one commit.

A document is the column `text` of a row of the split `train`. Loading scripts are never run.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from logging import CRITICAL
from pathlib import Path

from cache_tools.errors import CometError, first_line
from cache_tools.settings import HUB_PREFIX
from cache_tools.text.hub import COMMIT, NAME, bound_waiting, card_licence, hub_errors, split_revision

DATA_SET = re.compile(rf"{HUB_PREFIX}({NAME})(?::([^:]+))?")
WAY_OUT = "give --text FILE_OR_FOLDER"
READ_RETRIES = 2  # each several requests: three minutes in all; the default of datasets, 20, takes half an hour
MOST_NAMED = 8


@dataclass(frozen=True)
class HubText:
    """A data set of the hub; `revision` is a commit after `pin_revision`, `config` None for one that has no parts."""

    repository: str
    revision: str | None
    config: str | None

    @property
    def name(self) -> str:
        """The name that a cache records beside the revision."""
        return f"{HUB_PREFIX}{self.repository}" + (f":{self.config}" if self.config else "")

    @property
    def at_revision(self) -> str:
        """The name with its revision, as `--text` takes it."""
        return f"{HUB_PREFIX}{self.repository}@{self.revision}" + (f":{self.config}" if self.config else "")

    def record(self) -> dict[str, object]:
        """Return the fields that a cache keeps of it and a resumed build compares."""
        return {"name": self.name, "revision": self.revision}

    def licence(self) -> str:
        """Return the licence in the card of the data set. Raises CometError if the hub cannot be reached."""
        with hub_errors(f"--text {self.name}", WAY_OUT):
            return card_licence(self.repository, "dataset", self.revision)


def parse_hub_text(given: str) -> HubText:
    """Parse `hf:NAME[@REVISION][:CONFIG]`. Raises CometError for anything else."""
    match = DATA_SET.fullmatch(given)
    if match is None:
        raise CometError(
            f"--text {given}: expected hf:NAME or hf:NAME:CONFIG, such as hf:HuggingFaceFW/fineweb-2:kin_Latn",
            exit_code=2,
        )
    return HubText(*split_revision(match[1]), match[2])


def pin_revision(text: HubText) -> HubText:
    """Return the same data set at a commit. Raises CometError if the hub does not give one."""
    if text.revision is not None and COMMIT.fullmatch(text.revision):
        return text
    from huggingface_hub import HfApi

    with hub_errors(f"--text {text.name}", WAY_OUT):
        bound_waiting()
        return replace(text, revision=HfApi().dataset_info(text.repository, revision=text.revision).sha)


def hub_documents(text: HubText) -> Iterator[str]:
    """Yield the documents in the order of the data set's files, stripped.

    Raises CometError for a data set that cannot be read or holds no text, and if the network is away for long.
    """
    import datasets  # here: slow to import, and files do not need it

    what = f"--text {text.name}"
    if Path(text.repository).exists():
        raise CometError(
            f"{what}: a folder of that name exists here and would be read instead; run from another folder",
            exit_code=2,
        )
    datasets.logging.set_verbosity(CRITICAL)
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = READ_RETRIES
    # an empty cache: datasets falls back to any older version it finds there when the network fails
    with _data_set_errors(text), tempfile.TemporaryDirectory(prefix="comet-hub-") as empty:
        bound_waiting()
        rows = datasets.load_dataset(
            text.repository, text.config, split="train", streaming=True, revision=text.revision, cache_dir=empty
        )
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str):
                raise CometError(f'{what} row {number}: expected a string column "text", found {sorted(row)}')
            if document := row["text"].strip():
                yield document


@contextmanager
def _data_set_errors(text: HubText) -> Iterator[None]:
    """Turn everything that `datasets` raises, which may be any exception, into one line."""
    what = f"--text {text.name}"
    try:
        with hub_errors(what, WAY_OUT):
            yield
    except CometError:
        raise
    except Exception as error:
        if refusal := _why_not(text, error):
            raise CometError(f"{what}: {refusal}", exit_code=2) from error
        raise CometError(f"{what}: cannot be read ({first_line(error)}); download it and {WAY_OUT}") from error


def _why_not(text: HubText, error: Exception) -> str | None:
    """Return what is wrong with the request for an existing data set, None for other errors."""
    import datasets
    from datasets.data_files import EmptyDatasetError

    said = str(error)
    if "scripts are no longer supported" in said:
        return (
            "it has a loading script, which is never run; look for a data set of the same text in Parquet, "
            f"or download it and {WAY_OUT}"
        )
    if isinstance(error, datasets.exceptions.DataFilesNotFoundError | EmptyDatasetError):
        return f"it has no files that can be read as rows of text; download it and {WAY_OUT}"
    if "BuilderConfig" in said or "Config name is missing" in said:
        names = datasets.get_dataset_config_names(text.repository, revision=text.revision)
        near = get_close_matches(text.config or "", names, n=MOST_NAMED) or names[:MOST_NAMED]
        more = ", …" if len(near) < len(names) else ""
        wrong = f"it has no part {text.config!r}" if text.config else "it has several parts"
        return f"{wrong}; expected hf:{text.repository}:CONFIG with one of {', '.join(near)}{more}"
    if "Bad split" in said:
        return f"it has no split 'train', the one that is read: {first_line(error)}"
    return None
