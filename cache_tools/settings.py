"""Settings of `comet-cache build`, of `verify --teacher`, and of the commands that copy a part of a cache."""

import re
from dataclasses import dataclass
from pathlib import Path

from cache_tools.checks import require_number, require_text, require_types, require_whole, shown
from cache_tools.errors import CometError
from cache_tools.signals import DTYPES, FAMILIES, LOGITS

HUB_PREFIX = "hf:"  # marks a data set of the hub, where a file is also allowed
ATTENTION_KEYS = 16
START_WIDTH = 512
VIEW_TOKENS = 2_000_000  # of a text in all its views, by default, and
MOST_VIEWS = 16
AUTO = "auto"
HUB_TOKENS = 50_000_000  # about 1.3 GB of cache, and more text than most students need
LARGEST_BATCH = 2**20
MOST_TOKENS = 2**63 - 1
LAYERS = re.compile(r"last|all|none|(?:spread|every):[1-9]\d{0,8}|\s*[+-]?\d{1,9}\s*(?:,\s*[+-]?\d{1,9}\s*)*")
LAYER_FORMS = "last, all, none, spread:N, every:N, or layer numbers such as -1,-7"


def is_hub_text(given: str) -> bool:
    return given.startswith(HUB_PREFIX)


@dataclass(frozen=True)
class BuildSettings:
    """Options of a build, checked on creation. Raises CometError naming the option if one is invalid."""

    out: Path
    language: str
    teacher: str
    text: tuple[str, ...]
    max_tokens: int | None = None
    exclude: tuple[str, ...] = ()
    seq_len: int = 128
    views: int | None = None
    continue_views: int = 1
    mask_prob: float = 0.15
    seed: int = 0
    keep: str = "threshold"
    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0,)
    attention_layers: str = "spread:6"
    attention_queries: int = 8
    attention_keys: int | None = None
    start_layers: str = AUTO
    start_width: int | None = None
    rows_per_shard: int = 1024
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    weak_teacher: bool = False

    def __post_init__(self) -> None:
        def require(ok: bool, option: str, value: object, expected: str) -> None:
            if not ok:
                raise CometError(f"{option} {shown(value)}: expected {expected}", exit_code=2)

        require_types(self)
        require(bool(self.teacher.strip()), "--teacher", repr(self.teacher), "a folder or a name on the hub")
        for option, given in (("--text", self.text), ("--exclude", self.exclude)):
            ok = all(one.strip() and "\0" not in one for one in given)
            require(ok, option, given, "names of files or folders")
        require(len(self.text) > 0, "--text", "()", "at least one file, folder or hf:NAME")
        require(8 <= self.seq_len <= 8192, "--seq-len", self.seq_len, "8 to 8192 tokens")
        require(self.views is None or 1 <= self.views <= 1000, "--views", self.views, "1 to 1000")
        require(1 <= self.continue_views <= 1000, "--continue-views", self.continue_views, "1 to 1000")
        require(0 < self.mask_prob < 1, "--mask-prob", self.mask_prob, "a share between 0 and 1")
        require(0 <= self.seed < 2**63, "--seed", self.seed, "a whole number from 0")
        require(self.keep in LOGITS, "--keep", self.keep, " or ".join(LOGITS))
        logits = LOGITS[self.keep]
        require(logits.min_top_k <= self.top_k <= 2**14, "--top-k", self.top_k, f"{logits.min_top_k} to 16384")
        largest = min(self.seq_len, 4096)
        require(1 <= self.attention_queries <= 1024, "--attention-queries", self.attention_queries, "1 to 1024")
        require(1 <= self.keys_kept <= largest, "--attention-keys", self.keys_kept, f"1 to {largest}")
        for option, layers in (("--attention-layers", self.attention_layers), ("--start-layers", self.start_layers)):
            ok = LAYERS.fullmatch(layers) is not None or (layers == AUTO and option == "--start-layers")
            require(ok, option, layers, LAYER_FORMS)
        ok = self.start_width is None or 1 <= self.start_width <= 2**14
        require(ok, "--start-width", self.start_width, "1 to 16384")
        require(1 <= self.rows_per_shard <= 2**20, "--rows-per-shard", self.rows_per_shard, "1 to 1048576")
        ok = self.max_tokens is None or 1 <= self.max_tokens <= MOST_TOKENS
        require(ok, "--max-tokens", self.max_tokens, "a whole number of at least 1, below 2^63")
        ok = self.batch_size is None or 1 <= self.batch_size <= LARGEST_BATCH
        require(ok, "--batch-size", self.batch_size, f"1 to {LARGEST_BATCH}")
        require(self.dtype in (AUTO, *DTYPES), "--dtype", self.dtype, f"{AUTO}, {', '.join(DTYPES)}")
        listed = ",".join(f"{t:g}" if isinstance(t, float) else shown(t) for t in self.temperatures)
        ok = 0 < len(self.temperatures) <= 16 and all(0.01 <= t <= 1000 for t in self.temperatures)
        ok = ok and len(set(self.temperatures)) == len(self.temperatures)
        require(ok, "--temperatures", listed, "up to 16 different numbers from 0.01 to 1000, such as 1,2")
        ok = 1.0 in self.temperatures or not logits.needs_temperature_1
        reason = f"1 among them with --keep {self.keep}, since students are validated at 1"
        require(ok, "--temperatures", listed, reason)
        object.__setattr__(self, "temperatures", tuple(map(float, self.temperatures)))  # a recipe holds no other kind

    @property
    def local_sources(self) -> tuple[Path, ...]:
        """The texts and evaluation files on this machine."""
        return tuple(Path(source) for source in (*self.text, *self.exclude) if not is_hub_text(source))

    @property
    def token_limit(self) -> int | None:
        """Tokens of text at which reading stops: `max_tokens`, else HUB_TOKENS if any text is from the hub."""
        if self.max_tokens is not None:
            return self.max_tokens
        return HUB_TOKENS if any(is_hub_text(text) for text in self.text) else None

    def views_of(self, tokens: int) -> int:
        """Return the number of masked views of each row of a text of `tokens` tokens: `views`, else as many as make
        VIEW_TOKENS, at most MOST_VIEWS.

        A student that reads the same masks and draws many times learns them by heart.
        """
        return self.views if self.views is not None else min(-(-VIEW_TOKENS // max(tokens, 1)), MOST_VIEWS)

    @property
    def keys_kept(self) -> int:
        """The most keys kept of a query: `attention_keys`, else ATTENTION_KEYS, or all if rows are shorter."""
        return self.attention_keys if self.attention_keys is not None else min(ATTENTION_KEYS, self.seq_len)


@dataclass(frozen=True)
class RerunSettings:
    """Options of `verify --teacher`, checked on creation. Raises CometError naming the option if one is invalid.

    `dtype` auto is that in which each shard was built; `batch_size` None is as device and memory allow.
    """

    teacher: str
    rows: int = 256
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_types(self)
        if not self.teacher.strip():
            raise CometError(f"--teacher {self.teacher!r}: expected a folder or a name on the hub", exit_code=2)
        require_whole(self.rows, "--rows", 1, 2**40)
        require_whole(self.seed, "--seed", 0, 2**63 - 1)
        if self.dtype not in (AUTO, *DTYPES):
            raise CometError(f"--dtype {shown(self.dtype)}: expected {AUTO}, {', '.join(DTYPES)}", exit_code=2)
        if self.batch_size is not None:
            require_whole(self.batch_size, "--batch-size", 1, LARGEST_BATCH)


def parse_layers(text: str, layers: int, option: str = "--attention-layers") -> tuple[int, ...]:
    """Return layer indices, ascending, of a model with `layers` layers, for `last`, `all`, `none`, `spread:6`,
    `every:4` or `-1,-7`.

    `spread:n` takes n layers evenly spread, the last among them, all if there are fewer; `every:n` the last and every
    n-th before it. Raises CometError for anything else.
    """
    problem = CometError(f"{option} {text}: expected {LAYER_FORMS} within {layers} layers", exit_code=2)
    if text in ("last", "all", "none"):
        return {"last": (layers - 1,), "all": tuple(range(layers)), "none": ()}[text]
    try:
        way, colon, number = text.partition(":")
        if colon and way in ("spread", "every"):
            n = int(number)
            if n < 1:
                raise problem
            if way == "every":
                return tuple(sorted(range(layers - 1, -1, -n)))
            return tuple((i + 1) * layers // n - 1 for i in range(n)) if n < layers else tuple(range(layers))
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise problem from None
    if not all(-layers <= n < layers for n in numbers):
        raise problem
    return tuple(sorted({n % layers for n in numbers}))


@dataclass(frozen=True)
class LocalCache:
    """The folder for files of remote caches, and the most bytes of shards in it."""

    folder: Path
    size: int


def parse_bytes(text: str) -> int:
    """Return the bytes of `--local-size`: `20GB`, `500MB`, `1.5TB` or a plain number below 2^63. Raises CometError for
    anything else."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kMGT]?)B?", text.strip())
    size = int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")) if found else 0
    if not 0 < size < 2**63:
        raise CometError(f"--local-size {shown(text)}: expected a size such as 20GB or 500MB", exit_code=2)
    return size


PART_SIGNALS = ("all", *FAMILIES)  # that a smaller copy of a cache can hold beside the tokens


@dataclass(frozen=True)
class Part:
    """A part of a cache: a share of its bytes, 0 to 1; the most tokens, padding included; which of `PART_SIGNALS`; and
    whether it is detached from its text. Raises CometError naming the option if one is invalid.
    """

    fraction: float | None = None
    max_tokens: int | None = None
    signals: str = "all"
    detach_text: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        if self.fraction is not None:
            require_number(self.fraction, "--fraction", 0, 1, above=True)
        if self.max_tokens is not None:
            require_whole(self.max_tokens, "--max-tokens", 1, MOST_TOKENS)
        require_text(self.signals, "--signals", PART_SIGNALS)

    @property
    def is_whole(self) -> bool:
        """Whether it has all shards and signals, with or without the text."""
        return self == Part(detach_text=self.detach_text)
