"""The options of `comet-eval`, and where it writes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cache_tools.checks import as_path, require_number, require_text, require_whole
from cache_tools.errors import CometError
from cache_tools.places.destinations import SEAL, require_place
from cache_tools.text.hub import require_model_name
from cache_tools.text.languages import find_language

MOST_SEEDS = 1000
PAGE_SIGN, SIGN_WITHIN = b'<meta name="generator" content="comet-eval">', 1024  # by which its pages are known


@dataclass(frozen=True)
class EvaluationSettings:
    """The options of `comet-eval`. `models` are folders or hub names; the first is the reference.

    `data` is a folder of local files, None for the hub. `results` defaults to ./eval-TASK-LANGUAGE.json. The seeds are
    0 to `seeds` − 1. `learning_rate` defaults to a rule by hidden size, `max_length` (tokens) to the task's. `output`
    receives the best fine-tuned model: of several models the best after the reference. `device` is auto, cpu or cuda.
    Raises CometError for a number not above 0, a repeated model, a cache as a model, and an output that exists.
    """

    models: tuple[str, ...]
    task: str
    language: str
    data: Path | None = None
    results: Path | None = None
    output: Path | None = None
    seeds: int = 3
    epochs: int = 5
    batch_size: int = 16
    learning_rate: float | None = None
    max_length: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("data", "results", "output"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_path(getattr(self, name), f"--{name}"))
        require_text(self.task, "--task")
        require_text(self.language, "--lang")
        require_text(self.device, "--device")
        require_whole(self.seeds, "--seeds", 1, MOST_SEEDS)
        require_whole(self.epochs, "--epochs", 1)
        require_whole(self.batch_size, "--batch-size", 1)
        if self.max_length is not None:
            require_whole(self.max_length, "--max-length", 1)
        if self.learning_rate is not None:
            require_number(self.learning_rate, "--learning-rate", above=True)
        if not isinstance(self.models, tuple) or not self.models:
            raise CometError("--model: expected at least one, in a tuple", exit_code=2)
        for name in self.models:
            require_text(name, "--model")
            if os.path.isfile(os.path.join(name, SEAL)):
                raise CometError(
                    f"--model {name}: is a cache; expected the folder of a model, such as a student that "
                    "`comet-train --cache` trained from it",
                    exit_code=2,
                )
        if repeated := sorted({name for name in self.models if self.models.count(name) > 1}):
            raise CometError(f"--model {repeated[0]}: given twice", exit_code=2)
        if self.output is not None and os.path.exists(self.output):
            raise CometError(f"--output {self.output}: exists; give another folder, or remove it", exit_code=2)

    @property
    def results_path(self) -> Path:
        return self.results or Path(f"eval-{self.task}-{find_language(self.language).code}.json")

    @property
    def page_path(self) -> Path:
        """The page of scores, beside the results."""
        return self.results_path.with_suffix(".html")


def of_each_language(languages: Sequence[str], results: Path | None = None, **options: Any) -> list[EvaluationSettings]:
    """Return the settings of an evaluation in each language; of several, each has its own results: NAME-LANGUAGE.json.

    Raises CometError as `EvaluationSettings` does, for a language given twice, and for an output with several.
    """
    codes = [find_language(language).code for language in languages]
    if repeated := sorted({code for code in codes if codes.count(code) > 1}):
        raise CometError(f"--lang {repeated[0]}: given twice", exit_code=2)
    if len(codes) == 1:
        return [EvaluationSettings(language=languages[0], results=results, **options)]
    if options.get("output") is not None:
        raise CometError(
            f"--output {options['output']}: a fine-tuned model is of one language, found --lang {', '.join(codes)}; "
            "give one of them, or omit --output",
            exit_code=2,
        )
    named = None if results is None else as_path(results, "--results")
    return [
        EvaluationSettings(
            language=language,
            results=None if named is None else named.with_name(f"{named.stem}-{code}{named.suffix}"),
            **options,
        )
        for language, code in zip(languages, codes, strict=True)
    ]


def require_models(settings: EvaluationSettings) -> None:
    """Raise CometError for a model that is neither a folder nor has the form of a name on the hub. Does not connect.

    A name similar to that of a model's folder here is taken for a typing error, unless it has a revision.
    """
    for name in settings.models:
        near = [] if "@" in name else get_close_matches(name, _models_beside(Path(name)), n=1)
        what = " ".join([f"--model {name}", *(f"(did you mean {one}?)" for one in near)])
        require_model_name(name, what)
        if near and not os.path.isdir(name):
            raise CometError(
                f"{what}: no such folder here; for the model of that name on the hub give {name}@main", exit_code=2
            )


def _models_beside(path: Path) -> list[str]:
    """Return the folders beside a path that hold a model, under the names that it would have."""
    if not os.path.isdir(path.parent):
        return []
    return [str(file.parent) for file in path.parent.glob("*/config.json")]


def require_places(settings: EvaluationSettings) -> None:
    """Raise CometError unless results, page and output can be created, apart from each other, or are of comet-eval."""
    results, output = settings.results_path, settings.output
    if results.suffix != ".json":
        raise CometError(f"--results {results}: expected a name that ends in .json", exit_code=2)
    page = settings.page_path
    for path in (results, page):
        if os.path.isdir(path):
            raise CometError(f"--results {path}: is a folder; expected the path of a file", exit_code=2)
        require_place(path, "--results")
    if page.exists() and PAGE_SIGN not in page.read_bytes()[:SIGN_WITHIN]:
        raise CometError(
            f"--results {results}: {page}, where its page belongs, is another file; give another name, or move it",
            exit_code=2,
        )
    if output is not None:
        require_place(output, "--output")
        if output.resolve() in (results.resolve(), page.resolve()):
            raise CometError(f"--output {output}: is where results or page go; give another folder", exit_code=2)
