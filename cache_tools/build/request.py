"""Compare an existing cache with the options of `comet-cache build`."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools.build.resolve import BuildInputs
from cache_tools.build.start import choose_start
from cache_tools.errors import CometError, with_short_hashes
from cache_tools.settings import parse_layers
from cache_tools.store.copy import shortened
from cache_tools.store.reader import Cache
from cache_tools.teacher.model import Teacher
from cache_tools.text.languages import find_language
from cache_tools.text.tokenizer import tokenizer_sha256


def require_requested(
    inputs: BuildInputs, teacher: Teacher, tokenizer: PreTrainedTokenizerFast, cache: Cache, where: str, option: str
) -> None:
    """Raise CometError, naming each option that differs, unless the cache at `where` is the one asked for."""
    if differences := _differences(inputs, teacher, tokenizer, cache):
        raise CometError(
            f"{where}: exists and is another cache than the one asked for "
            f"({with_short_hashes(shortened(differences))}); choose another {option}, or give the options it was begun "
            "with to continue it",
            exit_code=2,
        )


def _differences(inputs: BuildInputs, teacher: Teacher, tokenizer: PreTrainedTokenizerFast, cache: Cache) -> list[str]:
    settings, recipe, provenance = inputs.settings, cache.recipe, cache.provenance
    layers = parse_layers(settings.attention_layers, recipe.teacher_layers)
    start = choose_start(settings, teacher)
    asked = {
        "teacher weights sha256": (teacher.sha256, recipe.teacher_sha256),
        "tokenizer sha256": (tokenizer_sha256(tokenizer), recipe.tokenizer_sha256),
        "--seq-len": (settings.seq_len, recipe.seq_len),
        "--views": (settings.views_of(provenance.get("text_tokens") or 0), recipe.views),
        "--continue-views": (settings.continue_views, recipe.continued_views),
        "--mask-prob": (settings.mask_prob, recipe.mask_prob),
        "--seed": (settings.seed, recipe.seed),
        "--keep": (settings.keep, recipe.keep),
        "--top-k": (settings.top_k, recipe.top_k),
        "--temperatures": (settings.temperatures, recipe.temperatures),
        "--attention-layers": (layers, recipe.attention_layers),
        "--attention-queries": (settings.attention_queries, recipe.attention_queries),
        "--attention-keys": (settings.keys_kept, recipe.attention_keys),
        "--start-layers": (start.layers, recipe.start_layers),
        "--start-width": (start.width, recipe.start_width),
        "--rows-per-shard": (settings.rows_per_shard, recipe.rows_per_shard),
        "--max-tokens": (settings.token_limit, provenance.get("max_tokens")),
        "--text": (inputs.text_records, _as_asked_for(provenance.get("text"))),
        "--exclude": (inputs.excluded_records, provenance.get("excluded")),
        "--lang": (find_language(settings.language).code, provenance.get("language")),
    }
    if settings.dtype != "auto":
        asked["--dtype"] = (settings.dtype, cache.settings["dtype"])
    if settings.batch_size is not None:
        asked["--batch-size"] = (settings.batch_size, cache.settings["batch_size"])
    return [f"{name}: asked {_shown(a)}, the cache has {_shown(b)}" for name, (a, b) in asked.items() if a != b]


def _shown(value: Any) -> str:
    """Return a value for a message; texts by their names and hashes or commits."""
    if isinstance(value, list):
        return ", ".join(_shown_text(record) for record in value) or "none"
    return str(value)


def _shown_text(record: dict[str, Any]) -> str:
    content = record.get("sha256") or record.get("revision")
    return f"{record.get('name')}" + (f" ({content})" if content else "")


def _as_asked_for(recorded: Any) -> list[dict[str, Any]]:
    """Return the records as `BuildInputs.text_records` has them: without the hub's licence and the tokens read."""
    return [{k: value for k, value in text.items() if k not in ("licence", "tokens")} for text in recorded or []]
