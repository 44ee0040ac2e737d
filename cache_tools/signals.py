"""The contents of a cache, of its text and of its teacher: every array declared once, as data, without numpy or torch.

Layout, bounds, values, verify, subset, card, info and the student's dataset read this table; a name that is not in it
is an error. Each signal also has one class that computes and compares it (`cache_tools.teacher.signals`) and one that
makes losses of it (`comet.train.signals`).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cache_tools.errors import CometError

if TYPE_CHECKING:
    from cache_tools.store.recipe import Recipe

UNUSED_POSITION = 65535
UNUSED_ID = -1
WEIGHT_STEPS = 254  # of the square root of an attention weight

AXES: dict[str, Callable[["Recipe"], int]] = {
    "position": lambda recipe: recipe.seq_len,
    "target": lambda recipe: recipe.max_targets,
    "temperature": lambda recipe: len(recipe.temperatures),
    "k": lambda recipe: recipe.top_k,
    "layer": lambda recipe: len(recipe.attention_layers),
    "query": lambda recipe: recipe.attention_slots,
    "key": lambda recipe: recipe.attention_keys,
}
"""The size of every axis but the first, the rows."""


class Legal(Enum):
    """The legal values at a target, worded for error messages; `store.bounds` checks them."""

    RISING = "rising positions, found another"
    TOKEN = "a token, found none"
    DISTINCT = "different tokens, found one twice or none"
    SAMPLED = "different tokens, each with a weight, found others"
    LOGPROB = "finite log-probabilities, found another number"
    LOGWEIGHT = "log weights of at most 0, found another number"
    LOGMASS = "a log mass, found NaN or infinity"
    FINITE = "a finite number, found another"


@dataclass(frozen=True)
class DeclaredArray:
    """One array [rows, *axes] of a group.

    `fill` marks unwritten values and the slots of unused targets; it is never a legal value. `span` returns the lowest
    value of an index and the first that is too high.
    """

    dtype: str
    axes: tuple[str, ...]
    fill: int | float
    legal: Legal | None = None
    span: Callable[["Recipe"], tuple[int, int]] | None = None


@dataclass(frozen=True)
class Tolerance:
    """The largest mean and the largest single error allowed in the rows of one shard; of a share the mean only."""

    mean: float
    largest: float = math.inf


@dataclass(frozen=True)
class Measure:
    """Errors allowed when a teacher is run again: in nats, of the square root of a weight, or as a share of ids or
    keys; one for each of `DTYPES`."""

    unit: str
    tolerances: tuple[Tolerance, Tolerance, Tolerance]


HALF = 2.0**-11  # relative rounding of stored float16
NATS_STEP = 1 / 1024  # step of stored tails and entropies: half the bytes, and finer than float16 log-probabilities
DTYPES = ("float32", "float16", "bfloat16")  # of the teacher, finest first


@dataclass(frozen=True)
class Signal:
    """Arrays of the teacher that belong together, of the family logits or attention.

    `measures` are the errors of a re-run teacher. `kept` describes the contents of a cache for `info` and the card,
    `fidelity` their difference from the teacher. With `needs_temperature_1`, temperature 1 must be among those kept.
    """

    name: str
    family: str
    arrays: dict[str, DeclaredArray]
    measures: dict[str, Measure]
    kept: Callable[["Recipe"], str]
    fidelity: str
    min_top_k: int = 1
    needs_temperature_1: bool = False


def _token_ids(recipe: "Recipe") -> tuple[int, int]:
    return UNUSED_ID, recipe.vocab_size


TOKENS = {
    "input_ids": DeclaredArray("int32", ("position",), -1, span=lambda recipe: (0, recipe.vocab_size)),
    "length": DeclaredArray("uint16", (), 65535, span=lambda recipe: (1, recipe.seq_len + 1)),
    "target_position": DeclaredArray("uint16", ("target",), UNUSED_POSITION, Legal.RISING),
    "target_id": DeclaredArray("int32", ("target",), UNUSED_ID, Legal.TOKEN, _token_ids),
    "row_key": DeclaredArray("uint64", (), 0),
}
"""Arrays that `prepare` writes; all others of a group are the teacher's."""

TOKEN_ARRAYS = tuple(TOKENS)
TEXT_ARRAYS = ("input_ids", "target_id")
"""The token arrays that reveal the text. A copy without them is detached from its text. The others stay: the
teacher's arrays need the positions, and the keys prove a text that is attached later."""

_AT_TEMPERATURE = ("target", "temperature")

_LOGPROB = Measure("nats", (Tolerance(0.002, 0.032), Tolerance(0.012, 0.1), Tolerance(0.13, 0.7)))
_NATS = Measure("nats", (Tolerance(0.002, 0.004), Tolerance(0.01, 0.06), Tolerance(0.1, 0.5)))
_KL = Measure("nats", (Tolerance(1e-5, 1e-4), Tolerance(1e-4, 5e-4), Tolerance(1e-3, 5e-3)))

THRESHOLD = Signal(
    name="threshold",
    family="logits",
    arrays={
        "sample_id": DeclaredArray("int32", (*_AT_TEMPERATURE, "k"), UNUSED_ID, Legal.SAMPLED, _token_ids),
        "sample_logweight": DeclaredArray("float16", (*_AT_TEMPERATURE, "k"), math.nan, Legal.LOGWEIGHT),
        "entropy": DeclaredArray("float32", _AT_TEMPERATURE, math.nan, Legal.FINITE),
        "entropy_seen": DeclaredArray("float32", _AT_TEMPERATURE, math.nan, Legal.FINITE),
    },
    measures={
        "sample_logweight": _LOGPROB,
        "entropy": _NATS,
        "entropy_seen": _NATS,
        "kl": _KL,
        "certain_id": Measure("share", (Tolerance(0.001), Tolerance(0.01), Tolerance(0.08))),
        # a coarser dtype draws other tokens, as probable
        "drawn_id": Measure("share", (Tolerance(0.01), Tolerance(1.0), Tolerance(1.0))),
        "drawn_logprob": Measure("nats", (Tolerance(0.1, 0.1),) * 3),  # rounded entropies, in every dtype
    },
    kept=lambda recipe: f"up to {recipe.top_k} tokens by threshold sampling",
    fidelity="Logits: a sample whose expectation is the teacher's whole distribution; its likely tokens are exact.",
    min_top_k=2,
    needs_temperature_1=True,
)

TOPK = Signal(
    name="topk",
    family="logits",
    arrays={
        "topk_id": DeclaredArray("int32", ("target", "k"), UNUSED_ID, Legal.DISTINCT, _token_ids),
        "topk_logprob": DeclaredArray("float16", ("target", "k"), math.nan, Legal.LOGPROB),
        "tail_logmass": DeclaredArray("float32", _AT_TEMPERATURE, math.nan, Legal.LOGMASS),
        "tail_logmass_seen": DeclaredArray("float32", _AT_TEMPERATURE, math.nan, Legal.LOGMASS),
    },
    measures={
        "topk_logprob": _LOGPROB,
        "tail_logmass": _NATS,
        "tail_logmass_seen": _NATS,
        "kl": _KL,
        "topk_id": Measure("share", (Tolerance(0.001), Tolerance(0.01), Tolerance(0.07))),
    },
    kept=lambda recipe: f"the {recipe.top_k} best tokens",
    fidelity="Logits: the best tokens exactly, and the mass of all others as one number, which is a bias.",
)


_KEYS = ("layer", "query", "key")


def _kept_attention(recipe: "Recipe") -> str:
    layers, every = ", ".join(map(str, recipe.attention_layers)), recipe.attention_queries
    queries = "every query" if every == 1 else f"one query in {every}"
    return f"layer {layers} of 0–{recipe.teacher_layers - 1}, {queries}, up to {recipe.attention_keys} keys of each"


ATTENTION = Signal(
    name="attention",
    family="attention",
    arrays={
        "attention_gap": DeclaredArray("uint16", _KEYS, 65535, span=lambda recipe: (0, recipe.seq_len + 1)),
        "attention_weight": DeclaredArray("uint8", _KEYS, 255, span=lambda recipe: (0, WEIGHT_STEPS + 1)),
    },
    measures={
        "attention_weight": Measure("root", (Tolerance(0.0005, 0.012), Tolerance(0.002, 0.02), Tolerance(0.006, 0.06))),
        "certain_key": Measure("share", (Tolerance(0.001), Tolerance(0.01), Tolerance(0.08))),
        "drawn_key": Measure("share", (Tolerance(0.01), Tolerance(1.0), Tolerance(1.0))),  # as drawn_id
    },
    kept=_kept_attention,
    fidelity="Attention: averaged over heads; of each query that is kept, a sample of keys whose expectation is the "
    "whole row, with the square roots of large weights rounded to 8 bits.",
)

LOGITS = {signal.name: signal for signal in (THRESHOLD, TOPK)}
"""The values of `--keep`; a cache holds one of them."""

SIGNALS = (*LOGITS.values(), ATTENTION)
FAMILIES = tuple(dict.fromkeys(signal.family for signal in SIGNALS))
ARRAYS = TOKENS | {name: array for signal in SIGNALS for name, array in signal.arrays.items()}
MEASURES = {name: measure for signal in SIGNALS for name, measure in signal.measures.items()}
_FAMILY_OF = dict.fromkeys(TOKENS, "tokens") | {name: signal.family for signal in SIGNALS for name in signal.arrays}


def kept_signals(recipe: "Recipe") -> tuple[Signal, ...]:
    """Return the signals of a cache, logits first."""
    return (LOGITS[recipe.keep], *((ATTENTION,) if recipe.attention_layers else ()))


def declared_arrays(recipe: "Recipe") -> dict[str, DeclaredArray]:
    """Return the arrays of a group of a cache by name, tokens first."""
    return TOKENS | {name: array for signal in kept_signals(recipe) for name, array in signal.arrays.items()}


def family_of(array: str) -> str:
    """Return "tokens", "logits" or "attention". Raises CometError if the table has no such array."""
    if array not in _FAMILY_OF:
        raise CometError(f"{array}: no array of a cache; expected one of {', '.join(_FAMILY_OF)}")
    return _FAMILY_OF[array]


def require_declared(names: Iterable[str], recipe: "Recipe", where: str) -> dict[str, DeclaredArray]:
    """Return the declarations of these arrays. Raises CometError if caches of this recipe have no such array."""
    declared = declared_arrays(recipe)
    if unknown := [name for name in names if name not in declared]:
        raise CometError(f"{where}: {unknown[0]}: no array of this cache; expected some of {', '.join(declared)}")
    return {name: declared[name] for name in names}
