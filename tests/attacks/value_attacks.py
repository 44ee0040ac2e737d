"""Attacks by values out of their range, in arrays under sound checksums."""

from pathlib import Path
from types import EllipsisType

from forging import Attack, change_array, change_sealed_array, write_array
from numpy import inf, nan

from cache_tools import open_cache
from cache_tools.signals import TOKEN_ARRAYS

Index = int | tuple[int, ...]


def cell(threat: str, name: str, at: Index, value: float, refused: str = "", keep: str = "threshold") -> Attack:
    """Put a value into an array of shard train 0, whose row 0 has a target in slot 0."""

    def change(cache: Path) -> None:
        change_array(cache, name, lambda array: array.__setitem__(at, value))

    return Attack(threat, "train", change, f"{name}: {refused}", keep=keep)


def repeated(threat: str, name: str, at: Index, source: Index, keep: str = "threshold") -> Attack:
    """Put one value of an array of shard train 0 into other places, too."""

    def change(cache: Path) -> None:
        change_array(cache, name, lambda array: array.__setitem__(at, array[source]))

    return Attack(threat, "train", change, f"{name}: ", keep=keep)


def vocabulary(threat: str, name: str, at: int | EllipsisType, value: float, refused: str = "") -> Attack:
    """Put a value into an array of the vocabulary."""

    def change(cache: Path) -> None:
        change_sealed_array(cache, f"vocabulary/{name}", lambda array: array.__setitem__(at, value))

    return Attack(threat, "train", change, f"vocabulary/{name}: {refused}")


def take_tokens_of_another_shard(cache: Path) -> None:
    for name, array in open_cache(cache).read_shard("train", 1, TOKEN_ARRAYS).items():
        write_array(cache, name, array)


ATTACKS = {
    # rows and targets
    "negative_id": cell(
        "A negative token in a row, which indexes from the end.",
        "input_ids",
        (0, 0),
        -7,
        "a value lies outside 0 to 59",
    ),
    "length_of_zero": cell(
        "A row of no tokens, over which a mean is none.", "length", 0, 0, "a value lies outside 1 to 16"
    ),
    "missing_target_id": cell(
        "No true token at a target that is used: −1 indexes the last one.", "target_id", (0, 0), -1
    ),
    "position_in_the_padding": cell(
        "A target behind the end of its row.", "target_position", (0, 1), 16, "a target lies in the padding"
    ),
    "position_twice": repeated("Two targets at one position.", "target_position", (0, 1), (0, 0)),
    "tokens_of_another_shard": Attack(
        "The tokens of one shard in place of another's, all signed: rows with the logits of others.",
        "verify --deep",
        take_tokens_of_another_shard,
        "the rows are not the token stream of the recipe",
    ),
    # the sample
    "id_beyond_the_vocabulary": cell(
        "A token that the vocabulary does not have.", "sample_id", (0, 0, 0, 0), 60, "a value lies outside -1 to 59"
    ),
    "weight_without_a_token": cell(
        "A weight in a slot without a token: −1 indexes the last one.", "sample_id", (0, 0, 0, 0), -1
    ),
    "duplicate_ids": repeated(
        "One token twice in a sample, so that it counts twice.", "sample_id", (0, 0, 0, 1), (0, 0, 0, 0)
    ),
    "weight_above_one": cell(
        "A token of the sample that stands for e¹⁰ times all there is.", "sample_logweight", (0, 0, 0, 0), 10
    ),
    "infinite_weight": cell(
        "A token of the sample that stands for infinitely much, which makes every loss infinite.",
        "sample_logweight",
        (0, 0, 0, 0),
        inf,
    ),
    "nan_weight": cell(
        "A weight that is no number, which makes every parameter of a student none.",
        "sample_logweight",
        (0, 0, 0, 0),
        nan,
    ),
    # the top k
    "missing_best_token": cell("No token where the teacher's best belongs.", "topk_id", (0, 0, 0), -1, keep="topk"),
    "best_token_twice": repeated(
        "The best token in all places, so that its probability counts many times.",
        "topk_id",
        (0, 0),
        (0, 0, 0),
        keep="topk",
    ),
    "positive_logprob": cell("A probability of e⁵.", "topk_logprob", (0, 0, 0), 5, keep="topk"),
    "nan_logprob": cell("A log-probability that is no number.", "topk_logprob", (0, 0, 0), nan, keep="topk"),
    "infinite_tail": cell("An infinite mass of the tail.", "tail_logmass", (0, 0, 0), inf, keep="topk"),
    "nan_tail": cell("A tail mass that is no number.", "tail_logmass", (0, 0, 0), nan, keep="topk"),
    # entropy, attention, vocabulary
    "nan_entropy": cell("An entropy that is no number.", "entropy", (0, 0, 0), nan),
    "infinite_entropy": cell("An infinite entropy.", "entropy_seen", (0, 0, 0), inf),
    "key_in_the_padding": cell(
        "A key of attention behind the end of its row.", "attention_gap", (0, 0, 0, 0), 15, "a key lies in the padding"
    ),
    "gap_beyond_any_row": cell(
        "A gap between keys that leads far out of every row.",
        "attention_gap",
        (0, 0, 0, 0),
        60_000,
        "a value lies outside 0 to 16",
    ),
    "query_without_a_key": cell(
        "A query without any key, whose weights would be 0 / 0.",
        "attention_gap",
        (0, 0, 0),
        16,
        "expected keys of one query in",
    ),
    "attention_of_too_much": Attack(
        "Attention that sums to many times 1.",
        "verify --deep",
        lambda cache: change_array(cache, "attention_weight", lambda array: array[:, :, :, :2].fill(254)),
        "attention_weight: ",
    ),
    "infinite_embedding": vocabulary("Infinities in the embeddings that a student begins with.", "embedding", ..., inf),
    "nan_head_bias": vocabulary("A bias that is no number in the vocabulary.", "head_bias", ..., nan),
    "negative_counts": vocabulary("Tokens that occur less than never.", "count", ..., -(2**62)),
    "unordered_vocabulary": vocabulary(
        "Ids of the vocabulary out of order, among them one beyond the end.",
        "id",
        3,
        2**30,
        "expected ascending ids below 60",
    ),
}
