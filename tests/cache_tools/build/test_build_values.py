"""Every value of a built cache against a dense reference: plain transformers, eager attention, full logits, float64.

The caches are read with plain zarr; nothing of cache_tools takes part in the reference.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.attention import differing_draws
from helpers.builds import build_whole, groups_of
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from cache_tools import open_cache

GROUPS = ("train", "validation")
ROUNDING = 1 / 2048 + 1e-4  # of tails and entropies
SEQ_LEN = 34  # a full row has 5 targets, one with three documents 4
TEMPERATURES = (1.0, 2.0, 0.5)
COMMON: dict[str, Any] = {"seq_len": SEQ_LEN, "attention_layers": "all", "temperatures": "1,2,0.5"}
CACHES: dict[str, dict[str, Any]] = {
    "topk": {
        "keep": "topk",
        "top_k": 8,
        "attention_queries": 1,
        "attention_keys": SEQ_LEN,
        "rows_per_shard": 50,
        "max_tokens": 1800,
    },
    "threshold": {
        "keep": "threshold",
        "top_k": 12,
        "attention_queries": 3,
        "attention_keys": 5,
        "rows_per_shard": 16,
        "views": 2,
        "max_tokens": 900,
    },
}


@dataclass(frozen=True)
class Reference:
    """What the teacher says about the rows of a group, dense."""

    logprob: NDArray[np.float64]  # [T, V] at the targets in row-major order
    attention: list[NDArray[np.float64]]  # for each row [layers, heads, n, n]


@dataclass(frozen=True)
class Built:
    """A cache as plain zarr shows it, and the reference for its groups."""

    folder: Path
    model: Any

    @cached_property
    def groups(self) -> dict[str, dict[str, NDArray]]:
        return groups_of(self.folder)

    @property
    def seen(self) -> NDArray[np.bool_]:
        seen = np.zeros(self.model.config.vocab_size, dtype=bool)
        seen[self.groups["vocabulary"]["id"]] = True
        return seen

    @cached_property
    def reference(self) -> dict[str, Reference]:
        return {group: dense(self.model, self.groups[group]) for group in GROUPS}


@pytest.fixture(scope="module")
def model(sample_teacher: Path) -> Any:
    loaded = AutoModelForMaskedLM.from_pretrained(sample_teacher, attn_implementation="eager", dtype=torch.float64)
    return loaded.eval()


def built_as(
    name: str, tmp_path_factory: pytest.TempPathFactory, model: Any, sample_teacher: Path, sample_text: Path
) -> Built:
    folder = tmp_path_factory.mktemp(name)
    out = folder / "kin.zarr"
    build_whole(out, sample_teacher, sample_text, folder / "log", **COMMON | CACHES[name])
    return Built(out, model)


@pytest.fixture(scope="module")
def of_the_best(tmp_path_factory: pytest.TempPathFactory, model: Any, sample_teacher: Path, sample_text: Path) -> Built:
    return built_as("topk", tmp_path_factory, model, sample_teacher, sample_text)


@pytest.fixture(scope="module")
def of_a_sample(tmp_path_factory: pytest.TempPathFactory, model: Any, sample_teacher: Path, sample_text: Path) -> Built:
    return built_as("threshold", tmp_path_factory, model, sample_teacher, sample_text)


@pytest.fixture(params=["of_the_best", "of_a_sample"])
def built(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def dense(model: Any, group: dict[str, NDArray]) -> Reference:
    """Rows of one length at a time, so that nothing is ever padded."""
    length, position = group["length"], group["target_position"]
    logits: dict[int, NDArray] = {}
    attention: dict[int, NDArray] = {}
    for n in np.unique(length):
        rows = np.flatnonzero(length == n)
        ids = torch.from_numpy(group["input_ids"][rows, :n].astype(np.int64))
        output = model(ids, output_attentions=True)
        maps = torch.stack(output.attentions, 1).numpy()  # [B, layers, heads, n, n]
        for index, row in enumerate(rows):
            used = position[row][position[row] != 65535].astype(np.int64)
            logits[row] = output.logits[index, used].log_softmax(1).numpy()
            attention[row] = maps[index]
    rows = range(len(length))
    return Reference(np.concatenate([logits[row] for row in rows]), [attention[row] for row in rows])


def log_mass(logprob: NDArray, chosen: NDArray, temperature: float) -> NDArray:
    """log Σ exp(logprob / T) over the chosen tokens [T, V]."""
    with np.errstate(divide="ignore"):
        return np.log(np.where(chosen, np.exp(logprob / temperature), 0.0).sum(1))


@pytest.mark.parametrize("group", GROUPS)
def test_best_tokens_and_tails_are_those_of_the_full_logits(of_the_best: Built, group: str) -> None:
    arrays, logprob = of_the_best.groups[group], of_the_best.reference[group].logprob
    used = arrays["target_position"] != 65535
    assert len(logprob) == used.sum() > 0
    ids, stored = arrays["topk_id"][used].astype(np.int64), arrays["topk_logprob"][used].astype(np.float64)
    k = ids.shape[1]
    kept = np.zeros(logprob.shape, dtype=bool)
    np.put_along_axis(kept, ids, True, axis=1)
    assert (kept.sum(1) == k).all(), "a token is kept twice"
    expected = np.take_along_axis(logprob, ids, axis=1)
    assert (np.abs(stored - expected) <= 2.0**-11 * np.abs(expected) + 1e-4).all()  # float16 rounds to 11 bits
    assert (np.diff(expected, axis=1) <= 1e-5).all(), "not best first"
    best = -np.sort(-logprob, axis=1)[:, : k + 1]
    np.testing.assert_allclose(expected, best[:, :k], atol=1e-5)
    best_ids = np.argsort(-logprob, axis=1, kind="stable")[:, :k]
    clear = (np.diff(-best, axis=1) > 1e-5).all(1)  # no two neighbours within the accuracy of float32
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(ids[clear], best_ids[clear])
    seen = of_the_best.seen
    for index, temperature in enumerate(TEMPERATURES):
        for name, chosen in (("tail_logmass", ~kept), ("tail_logmass_seen", ~kept & seen)):
            np.testing.assert_allclose(
                arrays[name][used][:, index], log_mass(logprob, chosen, temperature), atol=ROUNDING, err_msg=name
            )


@pytest.mark.parametrize("index", range(len(TEMPERATURES)))
@pytest.mark.parametrize("group", GROUPS)
def test_a_sample_of_the_full_logits_follows_its_definition(of_a_sample: Built, group: str, index: int) -> None:
    """All tokens of at least 1 / k and the best one for certain; the others where a running sum, which starts anywhere,
    passes multiples of the spacing."""
    arrays = of_a_sample.groups[group]
    used = arrays["target_position"] != 65535
    scaled = of_a_sample.reference[group].logprob / TEMPERATURES[index]
    probability = np.exp(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))
    ids = arrays["sample_id"][used][:, index].astype(np.int64)
    logweight = arrays["sample_logweight"][used][:, index].astype(np.float64)
    k, seen, draws = ids.shape[1], of_a_sample.seen, 0
    assert len(probability) == len(ids) > 0
    order = np.concatenate([np.flatnonzero(seen), np.flatnonzero(~seen)])
    for p, kept, weight in zip(probability, ids, logweight, strict=True):
        number = (kept >= 0).sum()
        assert (kept[number:] == -1).all()
        assert (weight[number:] == -np.inf).all()
        assert np.isfinite(weight[:number]).all()
        is_certain = (p >= 1 / k) | (p == p.max())
        certain = is_certain.sum()
        assert set(kept[:certain]) == set(np.flatnonzero(is_certain))
        expected = np.log(p[kept[:certain]])
        assert (np.diff(expected) <= 1e-5).all(), "not best first"
        assert (np.abs(weight[:certain] - expected) <= 2.0**-11 * np.abs(expected) + 1e-4).all()
        left = np.where(is_certain, 0.0, p)
        spacing = max(1 / k, left.sum() / max(k - certain, 1))
        drawn = kept[certain:number]
        assert (np.diff(drawn) > 0).all(), "not by rising id"
        np.testing.assert_allclose(weight[certain:number], np.log(spacing), rtol=2.0**-11)
        ends = np.empty_like(p)
        ends[order] = left[order].cumsum() / spacing
        turn = np.sort(ends[drawn])
        begins = turn - left[order][np.searchsorted(ends[order], turn)] / spacing
        multiples = np.arange(len(drawn))
        assert (begins - multiples).max(initial=0.0) <= (turn - multiples).min(initial=1.0) + 1e-4, "not one spacing"
        assert left.sum() / spacing - 1 - 1e-4 <= len(drawn) <= left.sum() / spacing + 1 + 1e-4
        draws += len(drawn)
    assert draws > 0
    for name, chosen in (("entropy", np.ones_like(seen)), ("entropy_seen", seen)):
        of_chosen = probability[:, chosen]
        expected = -(of_chosen * np.log(of_chosen / of_chosen.sum(1, keepdims=True))).sum(1)
        np.testing.assert_allclose(arrays[name][used][:, index], expected, atol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("group", GROUPS)
def test_unused_slots_hold_no_value(built: Built, group: str) -> None:
    arrays = built.groups[group]
    unused = arrays["target_position"] == 65535
    assert unused.any()
    for name in {"target_id", "topk_id", "sample_id"} & set(arrays):
        assert (arrays[name][unused] == -1).all()
    values = {"topk_logprob", "tail_logmass", "tail_logmass_seen", "sample_logweight", "entropy", "entropy_seen"}
    for name in values & set(arrays):
        assert np.isnan(arrays[name][unused]).all()
        assert not np.isnan(arrays[name][~unused]).any()


@pytest.mark.parametrize("group", GROUPS)
def test_attention_is_the_sample_of_the_definition(built: Built, group: str) -> None:
    """Of every key of every query in the one cache, of some in the other."""
    arrays, recipe = built.groups[group], open_cache(built.folder).recipe
    assert min(built.groups[g]["length"].min() for g in GROUPS) < SEQ_LEN - 1, "a last row should be ragged"
    rows = enumerate(built.reference[group].attention)
    differ = sum(differing_draws(weights.mean(1), arrays, row, recipe) for row, weights in rows)
    kept = np.count_nonzero(arrays["attention_gap"] < recipe.seq_len)
    assert differ <= 0.01 * kept, "rounding may move a draw to its neighbour, but rarely"


def test_vocabulary_holds_head_bias_and_principal_components(built: Built) -> None:
    arrays, model = built.groups["vocabulary"], built.model
    chosen = arrays["id"].astype(np.int64)
    np.testing.assert_allclose(arrays["head_bias"], model.lm_head.bias.detach().numpy()[chosen], atol=1e-6)
    original = model.get_input_embeddings().weight.detach().numpy()[chosen]
    components = arrays["embedding"].astype(np.float64)
    assert components.shape == original.shape, "in full width it is a rotation: all distances stay"
    apart = np.linalg.norm(original[1:] - original[:-1], axis=1)
    np.testing.assert_allclose(np.linalg.norm(components[1:] - components[:-1], axis=1), apart, rtol=2e-3)
    weight = arrays["count"] / arrays["count"].sum()
    variance = weight @ (components - weight @ components) ** 2
    assert (np.diff(variance) <= 1e-3 * variance[:-1] + 1e-6).all(), "the leading direction should come first"
