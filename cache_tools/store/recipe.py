"""The recipe: everything that decides the values in a cache. Its hash is the recipe id.

Checked here and not by a schema library, since many of the rules relate two fields.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from cache_tools.anatomy import anatomy_of
from cache_tools.errors import CometError
from cache_tools.signals import LOGITS
from cache_tools.store.records import canonical, sha256

FORMAT_VERSION = 2
MAX_ROPE = 1e9
GROUPS = ("train", "validation")
TEXT_FORM: Final = "NFC"
ATTENTION_RULE: Final = "mean over heads, stratified queries, systematic sample of keys"
MAX_SHARD_BYTES = 2**28  # of all arrays of a shard together, decoded: the memory that a reader needs


@dataclass(frozen=True)
class Recipe:
    """The teacher, its input, and the signals kept. All fields are hashed into `recipe_id`.

    `text_form` is the Unicode form of the text before it was tokenised.
    Of a start whose teacher has rotary positions, `start_rope` holds their bases in global and local layers,
    `start_local_layers` those of `start_layers` that attend to no more than `start_window` tokens around each, and
    `start_positions` is 0. For other teachers, which have a table of `start_positions`, they are empty and 0.
    """

    teacher_sha256: str
    teacher_architecture: str
    teacher_parameters: int
    teacher_layers: int
    teacher_hidden: int
    teacher_heads: int
    tokenizer_sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    tokens_sha256: str
    seen_sha256: str
    seen_size: int
    embedding_width: int
    train_rows: int
    validation_rows: int
    seq_len: int
    max_targets: int
    views: int
    continued_views: int
    continued_sha256: str
    mask_prob: float
    seed: int
    keep: str
    top_k: int
    temperatures: tuple[float, ...]
    attention_layers: tuple[int, ...]
    attention_queries: int
    attention_keys: int
    rows_per_shard: int
    start_layers: tuple[int, ...]
    start_width: int
    start_neurons: int
    start_positions: int
    start_rows: int
    start_local_layers: tuple[int, ...] = ()
    start_window: int = 0
    start_rope: tuple[float, ...] = ()
    text_form: str = TEXT_FORM
    attention_rule: str = ATTENTION_RULE
    format: int = FORMAT_VERSION

    @property
    def recipe_id(self) -> str:
        return sha256(canonical(asdict(self)))

    @property
    def attention_slots(self) -> int:
        """The queries of a full row in each layer."""
        return -(-self.seq_len // self.attention_queries)

    @property
    def start_step(self) -> int:
        """The divisor of the start's width: the number of heads, or the size of a head if they are kept whole."""
        return self.teacher_hidden // self.teacher_heads if self.start_rope else self.teacher_heads

    def rows(self, group: str) -> int:
        return self.train_rows if group == "train" else self.validation_rows

    def shards(self, group: str) -> int:
        return -(-self.rows(group) // self.rows_per_shard)

    def shard_rows(self, group: str, shard: int) -> int:
        """Return the rows of one shard: `rows_per_shard`, fewer in the last."""
        return min(self.rows_per_shard, self.rows(group) - shard * self.rows_per_shard)

    def differences(self, other: "Recipe") -> list[str]:
        """Return one line for each field that differs: its name, this recipe's value, the other's."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]} against {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def describe_views(recipe: Recipe) -> str:
    """Return the number of views, and how many in a chain the teacher continued."""
    number = f"{recipe.views} view{'s' if recipe.views > 1 else ''}"
    chain = min(recipe.continued_views, recipe.views)
    return f"{number}, in chains of {chain} that the teacher continued" if chain > 1 else number


INTEGER_BOUNDS = {
    "teacher_parameters": (1, 2**50),
    "teacher_layers": (1, 1024),
    "teacher_hidden": (1, 2**20),
    "teacher_heads": (1, 2**16),
    "vocab_size": (5, 2**24),
    "bos_id": (0, 2**24),
    "eos_id": (0, 2**24),
    "pad_id": (0, 2**24),
    "mask_id": (0, 2**24),
    "seen_size": (1, 2**24),
    "embedding_width": (1, 2**14),
    "train_rows": (1, 2**40),
    "validation_rows": (0, 2**40),
    "seq_len": (8, 2**15),
    "max_targets": (1, 2**15),
    "views": (1, 2**16),
    "continued_views": (1, 2**16),
    "seed": (0, 2**63 - 1),
    "top_k": (1, 2**14),
    "attention_queries": (1, 2**10),
    "attention_keys": (1, 2**12),
    "rows_per_shard": (1, 2**20),
    "start_width": (0, 2**14),
    "start_neurons": (0, 2**17),
    "start_positions": (0, 2**17),
    "start_rows": (0, 2**20),
    "start_window": (0, 2**17),
    "format": (FORMAT_VERSION, FORMAT_VERSION),
}
"""Smallest and largest value of each integer, so that none can size an allocation at will."""


def parse_recipe(value: dict[str, Any], where: str) -> Recipe:
    """Parse the recipe in a cache's attributes.

    Raises CometError naming `where`, the field, and the value found and expected.
    """

    def require(ok: bool, name: str, expected: str) -> None:
        if not ok:
            found = str(value.get(name, "nothing"))[:80]
            raise CometError(f"{where}: recipe field {name!r}: expected {expected}, found {found!r}")

    if "format" in value and value["format"] != FORMAT_VERSION:
        raise CometError(
            f"{where}: cache format {str(value['format'])[:20]!r}; this version of comet reads format "
            f"{FORMAT_VERSION}. Use a comet release that reads it, or build the cache again"
        )
    names = {field.name for field in fields(Recipe)}
    if unknown := sorted(set(value) ^ names):
        raise CometError(f"{where}: recipe fields missing or unknown: {', '.join(unknown)[:200]}")
    for name, (low, high) in INTEGER_BOUNDS.items():
        found = value[name]
        require(type(found) is int and low <= found <= high, name, f"a whole number from {low} to {high}")
    for name in ("teacher_sha256", "tokenizer_sha256", "tokens_sha256", "seen_sha256"):
        require(is_digest(value[name]), name, "64 hexadecimal digits")
    if value["continued_views"] > 1:
        require(is_digest(value["continued_sha256"]), "continued_sha256", "64 hexadecimal digits")
    else:
        require(value["continued_sha256"] == "", "continued_sha256", "nothing, since no view is continued")
    architecture = value["teacher_architecture"]
    named = isinstance(architecture, str) and architecture.isidentifier() and len(architecture) <= 100
    require(named, "teacher_architecture", "the name of a class")
    require(value["text_form"] == TEXT_FORM, "text_form", repr(TEXT_FORM))
    require(value["attention_rule"] == ATTENTION_RULE, "attention_rule", repr(ATTENTION_RULE))
    require(value["keep"] in tuple(LOGITS), "keep", " or ".join(LOGITS))  # a list could not be looked up in a dict
    logits = LOGITS[value["keep"]]
    require(type(value["mask_prob"]) is float and 0 < value["mask_prob"] < 1, "mask_prob", "a number between 0 and 1")
    for name in ("bos_id", "eos_id", "pad_id", "mask_id"):
        require(value[name] < value["vocab_size"], name, f"an id below {value['vocab_size']}")
    require(value["seen_size"] <= value["vocab_size"], "seen_size", f"at most {value['vocab_size']}")
    require(value["top_k"] >= logits.min_top_k, "top_k", f"at least {logits.min_top_k} for a {logits.name} sample")
    require(value["top_k"] <= value["vocab_size"], "top_k", f"at most {value['vocab_size']}")
    require(value["max_targets"] <= value["seq_len"], "max_targets", f"at most {value['seq_len']}")
    require(value["attention_keys"] <= value["seq_len"], "attention_keys", f"at most {value['seq_len']}")

    def require_list(name: str, kind: type[int] | type[float], low: float, high: float, shortest: int) -> None:
        found = value[name]
        ok = isinstance(found, list) and shortest <= len(found) <= 4096
        ok = ok and all(type(x) is kind and low <= x <= high for x in found) and len(set(found)) == len(found)
        require(ok, name, f"{shortest} to 4096 different numbers from {low} to {high}")

    require_list("special_ids", int, 0, value["vocab_size"] - 1, 1)
    require_list("temperatures", float, 0.01, 1000.0, 1)
    require_list("attention_layers", int, 0, value["teacher_layers"] - 1, 0)
    require_list("start_layers", int, 0, value["teacher_layers"] - 1, 0)
    require_list("start_local_layers", int, 0, value["teacher_layers"] - 1, 0)
    require(1.0 in value["temperatures"] or not logits.needs_temperature_1, "temperatures", "1 among them")
    _check_start(value, require)
    for name in ("special_ids", "temperatures", "attention_layers", "start_layers", "start_local_layers", "start_rope"):
        value = value | {name: tuple(value[name])}
    return Recipe(**value)


def _check_start(value: dict[str, Any], require: Callable[[bool, str, str], None]) -> None:
    """Check how the fields of a start go together; each by itself is within its bounds."""
    kept, hidden, heads = bool(value["start_layers"]), value["teacher_hidden"], value["teacher_heads"]
    for name in ("start_width", "start_neurons", "start_rows"):
        require((value[name] > 0) == kept, name, "a number above 0 if layers are kept, else 0")
    require(value["start_width"] <= hidden, "start_width", f"at most {hidden}")
    anatomy = anatomy_of(value["teacher_architecture"])
    rotary = kept and anatomy is not None and anatomy.norm_first
    rope = value["start_rope"]
    ok = isinstance(rope, list) and len(rope) == (2 if rotary else 0)
    ok = ok and all(type(base) is float and 1 <= base <= MAX_ROPE for base in rope)
    require(ok, "start_rope", f"two numbers from 1 to {MAX_ROPE:g} if layers with rotary positions are kept, else none")
    positions = "0, since they are rotary" if rotary else "a number above 0 if layers are kept, else 0"
    require((value["start_positions"] > 0) == (kept and not rotary), "start_positions", positions)
    local = value["start_local_layers"]
    require(rotary or not local, "start_local_layers", "none, since only layers with rotary positions are local")
    require(set(local) <= set(value["start_layers"]), "start_local_layers", "numbers that are also in start_layers")
    require((value["start_window"] > 0) == bool(local), "start_window", "a number above 0 if layers are local, else 0")
    require(not kept or hidden % heads == 0, "teacher_heads", f"a divisor of {hidden}")
    step = max(hidden // heads, 1) if rotary else heads
    require(not kept or value["start_width"] % step == 0, "start_width", f"a multiple of {step}")


def is_digest(value: Any) -> bool:
    """Return whether a value is a SHA-256 as 64 hexadecimal digits in lower case."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
