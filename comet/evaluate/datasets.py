"""Read the official splits of a task from local files or from the hub.

Local files have the formats in which the data sets were published, plain or compressed: tab-separated tables with a
header line for classification; for tagging one word and its tag per line, with a blank line between sentences.
"""

import csv
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cache_tools.errors import CometError, first_line
from cache_tools.text.compressed import COMPRESSIONS, READ_ERRORS, open_binary
from cache_tools.text.hub import hub_errors, unreachable
from comet.evaluate.tasks import Task

COLUMNS = (2, 4)  # of tagged files
DOCUMENT = "-DOCSTART-"  # begins a line between documents
SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # name in files: name on the hub


@dataclass(frozen=True)
class Example:
    """An item: one text and its label, or the words of a sentence and a label for each."""

    parts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A split: `name` is train, dev or test, `origin` the name of the file or of the data set on the hub."""

    name: str
    origin: str
    examples: tuple[Example, ...]

    def sha256(self) -> str:
        """Return the SHA-256 of texts and labels, whatever the file's name and compression."""
        content = [[example.parts, example.labels] for example in self.examples]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class TaskData:
    """A task's data: `reported` is the test split, or dev without one; `chosen_on` is dev unless that is reported."""

    task: Task
    language: str
    train: Split
    reported: Split
    chosen_on: Split | None

    @property
    def learnt_items(self) -> int:
        """Number of reported items whose text is that of an item of train."""
        texts = {example.parts for example in self.train.examples}
        return sum(example.parts in texts for example in self.reported.examples)


def load_task(task: Task, language: str, folder: Path | None, alone: bool = True) -> TaskData:
    """Load the official splits from the subfolder of `folder` named after the language, or from the hub if None.

    A language that is evaluated alone may have its files in `folder` itself. Raises CometError, with file and line, if
    there is no such data, a split is missing, or a label is unknown.
    """
    splits = _read_files(task, language, folder, alone) if folder else _read_hub(task, language)
    if "train" not in splits:
        raise CometError(_missing_splits(task, language, folder, "train"), exit_code=2)
    reported = splits.get("test") or splits.get("dev")
    if reported is None:
        raise CometError(_missing_splits(task, language, folder, "test or dev"), exit_code=2)
    return TaskData(task, language, splits["train"], reported, splits.get("dev") if "test" in splits else None)


def _missing_splits(task: Task, language: str, folder: Path | None, wanted: str) -> str:
    ending = _file_ending(task)
    files = " or ".join(f"{name}{ending}" for name in wanted.split(" or "))
    return (
        f"--data {folder}: no {files} (also {', '.join(COMPRESSIONS)}) for --lang {language}; expected train, dev and "
        f"test{ending} as in {task.source}, in this folder or in a subfolder named after the language"
    )


def _file_ending(task: Task) -> str:
    return ".txt" if task.tagging else ".tsv"


def _read_files(task: Task, language: str, folder: Path, alone: bool) -> dict[str, Split]:
    if not os.path.isdir(folder):  # unlike Path.is_dir, also False for a name that no disk takes
        raise CometError(f"--data {folder}: no such folder; get the files from {task.source}", exit_code=2)
    names = dict.fromkeys((language, task.code(language)))
    inner = [folder / name for name in names if (folder / name).is_dir()]
    if not inner and not alone:
        raise CometError(
            f"--data {folder}: no subfolder {' or '.join(names)}; with several --lang each needs its own, with the "
            f"files from {task.source}",
            exit_code=2,
        )
    found = {name: _split_file((*inner, folder)[0], name, _file_ending(task)) for name in SPLITS}
    return {name: read_file(task, name, path) for name, path in found.items() if path}


def read_file(task: Task, name: str, path: Path) -> Split:
    """Read a split from a file. Raises CometError, with file and line, if it is invalid or holds no example."""
    examples = tuple(_read_tagged(task, path) if task.tagging else read_table(task, path))
    if not examples:
        raise CometError(f"{path}: holds no example of {task.title}; get the file again from {task.source}")
    return Split(name, path.name, examples)


def _split_file(folder: Path, name: str, ending: str) -> Path | None:
    """Return the file of a split, if any; for train also a smaller published one, such as train_fewshot50.tsv."""
    stems = [re.escape(name), f"{name}_[^.]+"] if name == "train" else [re.escape(name)]
    endings = "|".join(re.escape(one) for one in COMPRESSIONS)
    for stem in stems:
        pattern = re.compile(f"{stem}{re.escape(ending)}({endings})?")
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
        if len(found) > 1:
            raise CometError(
                f"--data {folder}: {', '.join(path.name for path in found)} could all be the {name} split; keep one",
                exit_code=2,
            )
        if found:
            return found[0]
    return None


def _read_text(path: Path) -> str:
    try:
        with open_binary(path) as file:
            text = file.read().decode("utf-8-sig")
    except READ_ERRORS as error:
        raise CometError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise CometError(f"{path} line {number}: holds a NUL, as UTF-16 does; expected UTF-8 text")
    return text


def read_table(task: Task, path: Path) -> Iterable[Example]:
    """Yield the rows of a tab-separated table with a header. Raises CometError, with file and line, for a wrong one."""
    reader = csv.reader(
        io.StringIO(_read_text(path), newline=""),
        delimiter="\t",
        quoting=csv.QUOTE_MINIMAL if task.quoted else csv.QUOTE_NONE,
        strict=True,  # or text around a quotation mark would be joined to something else
    )
    try:
        columns = next(reader, [])
        if twice := [name for name in (*task.text, task.label) if columns.count(name) > 1]:
            raise CometError(f"{path} line 1: the column {twice[0]} occurs twice; leave one of them")
        if missing := [name for name in (*task.text, task.label) if name not in columns]:
            raise CometError(
                f"{path} line 1: no column {', '.join(missing)}; expected a table of {task.title} as in "
                f"{task.source}, found {', '.join(columns) or 'an empty file'}"
            )
        for row in filter(None, reader):  # skips blank lines
            where = f"{path} line {reader.line_num}"
            if len(row) != len(columns):
                raise CometError(f"{where}: expected {len(columns)} fields between tabs as in line 1, found {len(row)}")
            if any(line.count("\t") >= len(columns) - 1 for value in row for line in value.split("\n")[1:]):
                raise CometError(f"{where}: a quotation mark that is never closed swallows the rows before this line")
            field = dict(zip(columns, row, strict=True))
            yield _classified(task, [field[name] for name in task.text], field[task.label], where)
    except csv.Error as error:
        why = {"unexpected end of data": "a quotation mark before this line is never closed"}.get(str(error), error)
        raise CometError(f"{path} line {reader.line_num}: {why}") from error


def _read_tagged(task: Task, path: Path) -> Iterable[Example]:
    """Yield sentences: lines of a word and its tag, or of the four columns of CoNLL-2003, word first, tag last."""
    words: list[str] = []
    tags: list[str] = []
    width = 0  # columns of the file
    for number, line in enumerate([*_read_text(path).split("\n"), ""], 1):
        fields = re.split(r"[ \t]+", line.strip(" \t\r"))
        if fields[0] and not fields[0].startswith(DOCUMENT):
            width = width or len(fields)
            if len(fields) != width or width not in COLUMNS:
                raise CometError(
                    f"{path} line {number}: expected a word and its tag, found {line.strip()[:80]!r}; or, in all "
                    "of a file, the four columns of CoNLL-2003"
                )
            words.append(fields[0])
            tags.append(_known_label(task, fields[-1], f"{path} line {number}"))
        elif words:
            yield Example(tuple(words), tuple(tags))
            words, tags = [], []


def _classified(task: Task, texts: Sequence[str], label: str, where: str) -> Example:
    return Example((" ".join(text.strip() for text in texts),), (_known_label(task, label.strip(), where),))


def _known_label(task: Task, label: str, where: str) -> str:
    if label not in task.labels:
        raise CometError(f"{where}: label {label!r} is none of {task.name}'s: {', '.join(task.labels)}")
    return label


def _read_hub(task: Task, language: str) -> dict[str, Split]:
    """Read the splits of a data set on the hub. Raises CometError for any error of `datasets`, which has no type."""
    way_out = f"download the original files from {task.source} and give --data FOLDER"
    if task.hub is None:
        raise CometError(
            f"--task {task.name}: on the hub it needs a loading script, which is no longer supported; {way_out}",
            exit_code=2,
        )
    what = f"--task {task.name}: {task.hub}"
    try:
        with hub_errors(what, way_out):
            loaded = _load_from_hub(task.hub, task.code(language), what)
    except CometError:
        raise
    except Exception as error:
        raise CometError(f"{what} cannot be loaded ({first_line(error)}); {way_out}") from error
    return {name: hub_split(task, name, loaded[there]) for name, there in SPLITS.items() if there in loaded}


def _load_from_hub(repository: str, part: str, what: str) -> Any:
    """Return the splits of one configuration of a data set; offline, with a notice, those of an earlier download."""
    import datasets  # slow to import, and not needed for local files

    datasets.logging.set_verbosity(CRITICAL)
    datasets.disable_progress_bars()
    away = unreachable(repository, "dataset")
    try:
        loaded = datasets.load_dataset(repository, part)
    except Exception as error:
        if away is not None:
            raise away from error
        if "BuilderConfig" in str(error):
            parts = ", ".join(datasets.get_dataset_config_names(repository))
            raise CometError(f"{what} has no {part!r}; it has {parts}", exit_code=2) from error
        raise
    if away is not None and not datasets.config.HF_HUB_OFFLINE:
        note = f"{what}: the hub cannot be reached; using the copy of an earlier call on this machine"
        tqdm.write(note, file=sys.stderr)
    return loaded


def hub_split(task: Task, name: str, rows: Any) -> Split:
    """Convert a split of `datasets`. Columns as in the original files; labels are texts, or numbers with names."""
    if missing := [column for column in (*task.text, task.hub_label) if column not in rows.column_names]:
        raise CometError(f"{task.hub}: no column {', '.join(missing)}, found {', '.join(rows.column_names)}")
    label_names = getattr(rows.features[task.hub_label], "names", None)
    examples = []
    for number, row in enumerate(rows, 1):
        label = row[task.hub_label]
        text = label_names[label] if label_names else str(label)
        examples.append(
            _classified(task, [row[column] or "" for column in task.text], text, f"{task.hub} row {number}")
        )
    return Split(name, f"{task.hub} on the hub", tuple(examples))
