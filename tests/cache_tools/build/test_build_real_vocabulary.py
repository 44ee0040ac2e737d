"""A build with XLM-R's real vocabulary of 250,002 pieces: large ids survive, and memory stays small."""

import lzma
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.builds import build_whole
from transformers import AutoModelForMaskedLM, AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

from cache_tools import Cache, open_cache

VOCAB_SIZE = 250_002
LARGE = 2**17
MAX_BYTES = 3 * 2**30
TOKENS = 5000
BEST: dict[str, Any] = {"keep": "topk", "temperatures": "1,2"}


@dataclass(frozen=True)
class Build:
    """A cache of the best tokens, its teacher and tokenizer, its text, and the peak memory of the process."""

    cache: Cache
    teacher: Path
    tokenizer: Any
    texts: list[str]
    peak_bytes: int


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Real text, with words from the far end of the vocabulary in every fifth document."""
    folder = tmp_path_factory.mktemp("real")
    teacher = folder / "teacher"
    teacher.mkdir()
    source = shared / "data" / "xlm-roberta-tokenizer"
    shutil.copy(source / "tokenizer_config.json", teacher / "tokenizer_config.json")
    (teacher / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=514,
        initializer_range=0.2,
    )
    model = XLMRobertaForMaskedLM(config)
    model.lm_head.bias.data[LARGE:] += 2.0  # so that the best tokens lie there
    model.save_pretrained(teacher)
    del model

    far = [piece[1:] for piece in tokenizer.convert_ids_to_tokens(range(LARGE, VOCAB_SIZE - 1, 50)) if piece[0] == "▁"]
    with lzma.open(shared / "data" / "text" / "kin.txt.xz", "rt", encoding="utf-8") as file:
        lines = [line.strip() for _, line in zip(range(100), file, strict=False)]
    texts = [f"{line} {' '.join(far[5 * i : 5 * i + 5])}" if i % 5 == 0 else line for i, line in enumerate(lines)]
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")

    ended = build_whole(folder / "kin.zarr", teacher, folder / "text.txt", folder / "log", max_tokens=TOKENS, **BEST)
    return Build(open_cache(folder / "kin.zarr"), teacher, tokenizer, texts, ended.peak_bytes)


@pytest.mark.slow
def test_ids_above_two_to_the_17_survive(real: Build) -> None:
    recipe = real.cache.recipe
    assert recipe.vocab_size == VOCAB_SIZE
    ids = [i for text in real.texts for i in real.tokenizer(text, add_special_tokens=False)["input_ids"]]
    expected = np.unique([i for i in ids if i not in real.tokenizer.all_special_ids])
    assert (expected > LARGE).sum() > 50
    np.testing.assert_array_equal(real.cache.vocabulary.id, expected)

    arrays = real.cache.read_shard("train", 0)
    row, slot = np.nonzero(arrays["target_position"] != 65535)
    whole = arrays["input_ids"].copy()
    whole[row, arrays["target_position"][row, slot]] = arrays["target_id"][row, slot]
    special = [*real.tokenizer.all_special_ids]
    stored = [i for r, n in zip(whole, arrays["length"], strict=True) for i in r[:n].tolist() if i not in special]
    assert sum(i > LARGE for i in stored) > 50
    pieces = "".join(real.tokenizer.convert_ids_to_tokens(stored)).replace("▁", " ")
    assert sum(text.split()[-1] in pieces.split() for text in real.texts[::5]) >= 15
    assert (arrays["target_id"] > LARGE).any()
    assert (arrays["topk_id"] > LARGE).mean() > 0.3


@pytest.mark.slow
def test_logits_over_the_whole_vocabulary_are_the_plain_models(real: Build) -> None:
    model = AutoModelForMaskedLM.from_pretrained(real.teacher, attn_implementation="eager").eval()
    arrays = real.cache.read_shard("validation", 0)
    seen = np.isin(np.arange(VOCAB_SIZE), real.cache.vocabulary.id)
    for row in range(2):
        n = int(arrays["length"][row])
        used = arrays["target_position"][row] != 65535
        at = torch.from_numpy(arrays["target_position"][row][used].astype(np.int64))
        with torch.no_grad():
            logits = model(torch.from_numpy(arrays["input_ids"][row, :n].astype(np.int64))[None]).logits[0, at]
        logprob = logits.double().log_softmax(1).numpy()
        ids = arrays["topk_id"][row][used].astype(np.int64)
        stored = arrays["topk_logprob"][row][used]
        np.testing.assert_allclose(stored, -np.sort(-logprob, axis=1)[:, :64], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stored, np.take_along_axis(logprob, ids, axis=1), rtol=1e-3, atol=1e-3)
        for index, temperature in enumerate((1.0, 2.0)):
            mass = np.exp(logprob / temperature)
            np.put_along_axis(mass, ids, 0.0, axis=1)
            tail, tail_seen = (arrays[name][row][used][:, index] for name in ("tail_logmass", "tail_logmass_seen"))
            np.testing.assert_allclose(tail, np.log(mass.sum(1)), atol=1e-3)
            np.testing.assert_allclose(tail_seen, np.log((mass * seen).sum(1)), atol=1e-3)


@pytest.mark.slow
def test_memory_stays_under_three_gibibytes(real: Build) -> None:
    assert 2**28 < real.peak_bytes < MAX_BYTES, f"{real.peak_bytes / 2**30:.2f} GiB"
