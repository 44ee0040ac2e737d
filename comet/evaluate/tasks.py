"""The evaluation tasks: labels, score and source of the data."""

from dataclasses import dataclass
from difflib import get_close_matches

from cache_tools.errors import CometError
from comet.evaluate.metrics import Score, accuracy, entity_f1, weighted_f1

SENTIMENTS = ("positive", "neutral", "negative")
NEWS = ("business", "entertainment", "health", "politics", "religion", "sports", "technology")
TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-DATE", "I-DATE")
UNIVERSAL_TAGS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


@dataclass(frozen=True)
class Task:
    """A data set and its score.

    A tagging task labels words; `unreached` is the prediction for a word beyond the input. Any other labels texts: the
    columns `text`, joined by a space, with the label in column `label`; `quoted` tables follow CSV's quoting rules.
    `source` is the URL of the original files. `hub` is a data set without loading script, None if there is none known;
    its label column is `hub_label`. `codes` maps ISO 639-3 to the data set's own names of languages, and `suffix` ends
    all its other names.
    """

    name: str
    title: str
    metric: str
    score: Score
    labels: tuple[str, ...]
    max_length: int  # default, in tokens
    source: str
    hub: str | None
    suffix: str = ""
    codes: tuple[tuple[str, str], ...] = ()
    text: tuple[str, ...] = ("text",)
    label: str = "category"
    hub_label: str = "category"
    quoted: bool = True
    tagging: bool = False
    unreached: str = ""

    def code(self, language: str) -> str:
        """Return the data set's name of a language."""
        return dict(self.codes).get(language, language + self.suffix)


TASKS = (
    Task(
        name="afrisenti",
        title="AfriSenti (sentiment of tweets)",
        metric="weighted F1",
        score=weighted_f1,
        labels=SENTIMENTS,
        max_length=128,
        source="https://github.com/afrisenti-semeval/afrisent-semeval-2023",
        hub="masakhane/afrisenti",
        text=("tweet",),
        label="label",
        hub_label="label",
        quoted=False,  # tweets are unescaped and contain stray quotation marks
    ),
    Task(
        name="masakhaner",
        title="MasakhaNER (named entities)",
        metric="entity F1",
        score=entity_f1,
        labels=ENTITIES,
        max_length=256,
        source="https://github.com/masakhane-io/masakhane-ner",
        hub=None,  # masakhane/masakhaner and masakhaner2 need their loading scripts
        tagging=True,
        unreached="O",
    ),
    Task(
        name="masakhanews",
        title="MasakhaNEWS (topics of news)",
        metric="weighted F1",
        score=weighted_f1,
        labels=NEWS,
        max_length=256,
        source="https://github.com/masakhane-io/masakhane-news",
        hub="masakhane/masakhanews",
        text=("headline", "text"),
        hub_label="label",
    ),
    Task(
        name="sib200",
        title="SIB-200 (topics of sentences)",
        metric="weighted F1",
        score=weighted_f1,
        labels=TOPICS,
        max_length=128,
        source="https://github.com/dadelani/sib-200",
        hub="Davlan/sib200",
        suffix="_Latn",
        codes=(
            *(("swa", "swh_Latn"), ("mlg", "plt_Latn"), ("orm", "gaz_Latn")),
            *(("amh", "amh_Ethi"), ("tir", "tir_Ethi"), ("ara", "arb_Arab")),
        ),
    ),
    Task(
        name="masakhapos",
        title="MasakhaPOS (parts of speech)",
        metric="accuracy",
        score=accuracy,
        labels=UNIVERSAL_TAGS,
        max_length=256,
        source="https://github.com/masakhane-io/masakhane-pos",
        hub=None,  # masakhane/masakhapos needs its loading script
        tagging=True,
        unreached="_",  # no tag of the set: always wrong
    ),
)


def find_task(name: str) -> Task:
    """Return the task of this name. Raises CometError, with the nearest name, if there is none."""
    by_name = {task.name: task for task in TASKS}
    if name not in by_name:
        near = get_close_matches(name.lower(), by_name, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CometError(f"--task {name}: no such task; expected {', '.join(by_name)}{hint}", exit_code=2)
    return by_name[name]
