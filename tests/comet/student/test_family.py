"""Families of students: what of transformers' they are, and that their parts together are the whole model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cache_tools import Cache
from cache_tools.attention import enable_capture
from cache_tools.errors import CometError
from cache_tools.models import max_positions
from comet.student.family import (
    BERT,
    FAMILIES,
    LONGEST,
    MODERN_BERT,
    XLM_R,
    StudentFamily,
    StudentShape,
    family_of,
    head_features,
    hidden_states,
    output_layer,
    word_embeddings,
)
from comet.student.model import earlier_student, new_student
from comet.student.shape import choose_shape, count_parameters
from comet.student.vocabulary import full_vocabulary, student_tokenizer

SHAPE = StudentShape("small", layers=3, hidden=24, heads=4, intermediate=32)
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("XLMRobertaForMaskedLM", XLM_R),
        ("RobertaForMaskedLM", XLM_R),
        ("CamembertForMaskedLM", XLM_R),
        ("BertForMaskedLM", BERT),
        ("ModernBertForMaskedLM", MODERN_BERT),
        ("DebertaV2ForMaskedLM", XLM_R),
    ],
)
def test_a_student_is_of_its_teacher_s_family(cache: Cache, architecture: str, family: StudentFamily) -> None:
    assert family_of(replace(cache.recipe, teacher_architecture=architecture)) is family


@each_family
def test_the_parts_together_are_the_whole_model(family: StudentFamily) -> None:
    torch.manual_seed(0)
    student = family.model(family.config(SHAPE, 99)).eval()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.3)
    length = torch.tensor([40, 11])
    mask = torch.arange(40) < length[:, None]
    ids = torch.randint(3, 99, (2, 40)).masked_fill(~mask, 1)
    with torch.no_grad():
        expected = student(ids, attention_mask=mask).logits[mask]
        enable_capture(student)
        words = nn.functional.embedding(ids, word_embeddings(student))
        hidden = hidden_states(student, words, mask)[mask]
        found = output_layer(student)(head_features(student, hidden))
    torch.testing.assert_close(found, expected)


@each_family
def test_words_and_predictions_share_their_weights(family: StudentFamily) -> None:
    student = family.model(family.config(SHAPE, 99))
    assert output_layer(student).weight is word_embeddings(student)
    assert output_layer(student).bias.shape == (99,)


@each_family
@pytest.mark.parametrize("seq_len", [128, 700])
def test_a_student_reads_every_row_and_no_longer_text_than_it_says(family: StudentFamily, seq_len: int) -> None:
    config = family.config(SHAPE, 99, special={"pad_id": 5, "bos_id": 3, "eos_id": 4}, seq_len=seq_len)
    assert max_positions(config) == max(LONGEST, seq_len)
    ids = torch.full((1, max(LONGEST, seq_len)), 7)
    assert family.model(config).eval()(ids).logits.isfinite().all()


def test_the_ids_of_special_tokens_are_the_student_s() -> None:
    for family in FAMILIES.values():
        config = family.config(SHAPE, 99, special={"pad_id": 5, "bos_id": 3, "eos_id": 4})
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (5, 3, 4)
    assert (config.cls_token_id, config.sep_token_id) == (3, 4), "ModernBERT names them so"


@each_family
def test_dropout_is_everywhere(family: StudentFamily) -> None:
    student = family.model(family.config(SHAPE, 99, dropout=0.25))
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.25}
    fields = student.config.to_dict().items()
    rates = {name: rate for name, rate in fields if "dropout" in name and "classifier" not in name}
    assert set(rates.values()) == {0.25}, rates


def test_every_layer_of_a_modernbert_student_can_look_everywhere() -> None:
    config = MODERN_BERT.config(SHAPE, 99)
    assert config.layer_types == ["full_attention"] * SHAPE.layers


@each_family
def test_parameters_are_those_of_the_body(family: StudentFamily) -> None:
    body = family.model(family.config(SHAPE, 99)).base_model
    pooler = 0 if family is MODERN_BERT else SHAPE.hidden * (SHAPE.hidden + 1)
    assert count_parameters(SHAPE, 99, family) == sum(p.numel() for p in body.parameters()) + pooler


def test_a_student_starts_from_its_cache(of_each_family: Cache) -> None:
    recipe, vocabulary = of_each_family.recipe, full_vocabulary(of_each_family.recipe)
    student = new_student(SHAPE, [of_each_family], vocabulary, dropout=0.0, seed=0)
    assert type(student).__name__ == recipe.teacher_architecture
    hidden = torch.randn(5, SHAPE.hidden)
    expected = nn.functional.layer_norm(nn.functional.gelu(hidden), (SHAPE.hidden,))
    torch.testing.assert_close(head_features(student, hidden), expected, rtol=1e-3, atol=1e-3)
    found = of_each_family.vocabulary
    ids, counts = torch.tensor(found.id), torch.ones(recipe.vocab_size)
    counts[ids] += torch.tensor(found.count)
    torch.testing.assert_close(output_layer(student).bias.exp(), counts / counts.sum())
    words = word_embeddings(student)[ids].detach()
    torch.testing.assert_close(words @ words.T / words.norm() ** 2, _similarities(of_each_family))


def _similarities(cache: Cache) -> torch.Tensor:
    """Products of the cached embeddings' leading components, over their sum of squares."""
    components = torch.tensor(cache.vocabulary.embedding[:, : SHAPE.hidden]).float()
    return components @ components.T / components.norm() ** 2


def test_heads_of_an_odd_width_cannot_be_turned(cache: Cache, cache_of: Callable[[str], Cache], tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    shape = {"num_hidden_layers": 2, "hidden_size": 30, "num_attention_heads": 2, "intermediate_size": 40}
    path.write_text(json.dumps(shape))
    assert choose_shape(str(path), cache.recipe, 99).hidden == 30
    expected = "each of 2 heads would be 15 wide; expected a multiple of 2 for a ModernBERT student"
    with pytest.raises(CometError, match=expected):
        choose_shape(str(path), cache_of("modernbert").recipe, 99)


def test_an_earlier_student_of_another_family_is_refused(
    cache: Cache, cache_of: Callable[[str], Cache], tmp_path: Path
) -> None:
    bert = cache_of("bert")
    vocabulary = full_vocabulary(bert.recipe)
    new_student(SHAPE, [bert], vocabulary, dropout=0.0, seed=0).save_pretrained(tmp_path)
    student_tokenizer(bert, vocabulary).save_pretrained(tmp_path)
    assert type(earlier_student(tmp_path, [bert], vocabulary, 0.1)).__name__ == "BertForMaskedLM"
    expected = (
        rf"^--init {tmp_path}: expected a student of the family XLM-R \(xlm-roberta\), as all students of "
        "XLMRobertaForMaskedLM are, found bert; give a student of these caches' teacher, or --init cache$"
    )
    with pytest.raises(CometError, match=expected):
        earlier_student(tmp_path, [cache], full_vocabulary(cache.recipe), 0.0)


@pytest.mark.parametrize("lacks", ["lm_head.dense.weight", "roberta.encoder.layer.1.output.dense.bias"])
def test_an_earlier_student_lacks_no_weight(cache: Cache, tmp_path: Path, lacks: str) -> None:
    """Those of a model that has been fine-tuned, or of a file cut by hand, would begin as random numbers."""
    vocabulary = full_vocabulary(cache.recipe)
    new_student(SHAPE, [cache], vocabulary, dropout=0.0, seed=0).save_pretrained(tmp_path)
    student_tokenizer(cache, vocabulary).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lacks]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CometError, match=rf"--init {tmp_path}: its weights lack {lacks}, which would be random"
    ) as caught:
        earlier_student(tmp_path, [cache], vocabulary, 0.0)
    assert caught.value.exit_code == 2
