"""Choose the text on which an exported model is compared with torch: in its own language if that is available."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import cache_tools.sample
from cache_tools.errors import CometError, printable
from cache_tools.store.reader import Cache, open_cache
from cache_tools.text.masking import unmasked
from cache_tools.text.tokenizer import load_cache_tokenizer
from comet.paths import options_path

MOST_ROWS, LEAST_SENTENCES = 256, 8


@dataclass(frozen=True)
class Texts:
    """Sentences, and a description of their origin."""

    described: str
    sentences: list[str]


def texts_for(model: Path) -> Texts:
    """Return the validation text of the cache that is named in the options beside a student, if it still exists and has
    enough text; for any other model the Kinyarwanda sample."""
    try:
        options = tomllib.loads(options_path(model.resolve()).read_text(encoding="utf-8"))
        cache = open_cache(options["cache"][0])
        cache.require_text()
        sentences = _validation_text(cache)
    except (OSError, ValueError, LookupError, TypeError, CometError):
        sentences = []
    if len(sentences) >= LEAST_SENTENCES:
        return Texts(f"{printable(cache.provenance.get('language_name'))} text of its cache", sentences)
    sample = Path(cache_tools.sample.__file__).with_name("text.txt").read_text(encoding="utf-8")
    return Texts("the sample's Kinyarwanda text, since no text of its own is at hand", sample.splitlines())


def _validation_text(cache: Cache) -> list[str]:
    """Return the documents in the first validation rows of the first view, or what a row holds of them."""
    recipe, (arrays, _) = cache.recipe, cache.read_tokens("validation", 0)
    rows = min(len(arrays["length"]), recipe.validation_rows // recipe.views, MOST_ROWS)
    tokens = unmasked(arrays)[:rows]  # [R, L]
    tokenizer = load_cache_tokenizer(cache)
    documents = [part for line in tokens for part in np.split(line, np.flatnonzero(line == recipe.eos_id))]
    texts = (str(tokenizer.decode(document, skip_special_tokens=True)).strip() for document in documents)
    return [text for text in texts if text]
