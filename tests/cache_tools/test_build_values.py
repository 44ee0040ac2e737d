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
import zarr
from builds import build
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

GROUPS = ("train", "validation")
SEQ_LEN = 34  # a full row has 5 targets, one with three documents 4
TEMPERATURES = (1.0, 2.0, 0.5)
COMMON: dict[str, Any] = {"seq_len": SEQ_LEN, "attention_layers": "all", "temperatures": "1,2,0.5"}
CACHES: dict[str, dict[str, Any]] = {
    "topk": {"top_k": 8, "attention_size": SEQ_LEN, "rows_per_shard": 50, "max_tokens": 1800},
    "threshold": {
        "keep": "threshold",
        "top_k": 12,
        "attention_size": 5,
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
        root = zarr.open_group(self.folder, mode="r")
        return {g: {name: array[...] for name, array in root[g].arrays()} for g in (*GROUPS, "vocabulary")}

    @cached_property
    def reference(self) -> dict[str, Reference]:
        return {group: dense(self.model, self.groups[group]) for group in GROUPS}


@pytest.fixture(scope="module")
def model(sample_teacher: Path) -> Any:
    loaded = AutoModelForMaskedLM.from_pretrained(sample_teacher, attn_implementation="eager", dtype=torch.float64)
    return loaded.eval()


@pytest.fixture(scope="module", params=list(CACHES))
def built(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model: Any,
    sample_teacher: Path,
    sample_text: Path,
) -> Built:
    folder = tmp_path_factory.mktemp(request.param)
    out = folder / "kin.zarr"
    ended = build(out, sample_teacher, sample_text, folder / "log", **COMMON | CACHES[request.param])
    assert (ended.code, ended.stderr) == (0, "")
    return Built(out, model)


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
def test_kept_tokens_and_both_tails_are_those_of_the_full_logits(built: Built, group: str) -> None:
    arrays, logprob = built.groups[group], built.reference[group].logprob
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

    if "threshold" in arrays:
        threshold = arrays["threshold"][used].astype(np.float64)[:, None]
        probability = np.exp(logprob)
        np.testing.assert_allclose(np.minimum(1.0, probability / threshold).sum(1), k, rtol=1e-4)
        assert kept[probability > threshold * 1.001].all(), "a token above the threshold is missing"
        certain = (probability > threshold).sum(1)
        assert (certain < k).all()
        assert certain.max() > 0
        np.testing.assert_allclose(np.where(kept, np.maximum(probability, threshold), 0.0).sum(1), 1.0, rtol=1e-4)
    else:
        assert "threshold" not in arrays
        best = -np.sort(-logprob, axis=1)[:, : k + 1]
        np.testing.assert_allclose(expected, best[:, :k], atol=1e-5)
        best_ids = np.argsort(-logprob, axis=1, kind="stable")[:, :k]
        clear = (np.diff(-best, axis=1) > 1e-5).all(1)  # no two neighbours within the accuracy of float32
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(ids[clear], best_ids[clear])

    seen = np.zeros(logprob.shape[1], dtype=bool)
    seen[built.groups["vocabulary"]["id"]] = True
    for index, temperature in enumerate(TEMPERATURES):
        for name, chosen in (("tail_logmass", ~kept), ("tail_logmass_seen", ~kept & seen)):
            np.testing.assert_allclose(
                arrays[name][used][:, index], log_mass(logprob, chosen, temperature), atol=1e-4, err_msg=name
            )


@pytest.mark.parametrize("group", GROUPS)
def test_unused_slots_hold_no_value(built: Built, group: str) -> None:
    arrays = built.groups[group]
    unused = arrays["target_position"] == 65535
    assert unused.any()
    assert (arrays["target_id"][unused] == -1).all()
    assert (arrays["topk_id"][unused] == -1).all()
    for name in {"topk_logprob", "tail_logmass", "tail_logmass_seen", "threshold"} & set(arrays):
        assert np.isnan(arrays[name][unused]).all()
        assert np.isfinite(arrays[name][~unused]).all()


@pytest.mark.parametrize("group", GROUPS)
def test_attention_maps_are_the_eager_ones_pooled_by_definition(built: Built, group: str) -> None:
    arrays = built.groups[group]
    length, stored = arrays["length"], arrays["attention"].astype(np.float64)
    size = stored.shape[-1]
    assert stored.shape[:2] == (len(length), built.model.config.num_hidden_layers)
    assert min(built.groups[g]["length"].min() for g in GROUPS) < SEQ_LEN - 1, "a last row should be ragged"
    for row, weights in enumerate(built.reference[group].attention):
        n = int(length[row])
        blocks = min(n, size)
        block = [p * blocks // n for p in range(n)]
        first = [block.index(b) for b in range(blocks)]
        sums = np.add.reduceat(np.add.reduceat(weights.mean(1), first, axis=1), first, axis=2)  # over queries, keys
        expected = np.zeros(stored.shape[1:])
        expected[:, :blocks, :blocks] = sums / np.bincount(block)[:, None]
        np.testing.assert_allclose(stored[row], expected, atol=1e-5, rtol=2.0**-11, err_msg=f"row {row}")
        np.testing.assert_allclose(stored[row][:, :blocks].sum(-1), 1.0, atol=2e-3)


def test_vocabulary_holds_the_head_bias_and_the_embeddings_turned_to_their_principal_directions(built: Built) -> None:
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
