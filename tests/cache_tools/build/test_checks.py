"""What a build refuses before it writes anything: teachers that it could not run, or whose checkpoint says more than
transformers computes, and texts that the teacher cannot read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.settings import build_settings
from helpers.tiny_teachers import SPECIAL_IDS, TINY, bert, byte_pairs
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    CamembertConfig,
    Data2VecTextConfig,
    DebertaV2Config,
    FNetConfig,
    MobileBertConfig,
    MPNetConfig,
    PretrainedConfig,
)

from cache_tools import build_cache, open_cache
from cache_tools.build import checks
from cache_tools.cli.facts import describe
from cache_tools.errors import CometError
from cache_tools.verify.verify import verify


def refused(teacher: Path, text: Path, **options: Any) -> str:
    """The message, once nothing was left behind."""
    out = teacher.parent / "out" / "kin.zarr"
    with pytest.raises(CometError) as caught:
        build_cache(build_settings(out, teacher, text, **options))
    assert not out.exists() and not list(out.parent.glob(".*"))
    return str(caught.value)


@pytest.fixture
def teacher(tmp_path: Path, sample_text: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    bert(folder, sample_text)
    return folder


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def add_weights(folder: Path, **tensors: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors") | tensors
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


LAYER = "bert.encoder.layer.1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{LAYER}.attention.self.distance_embedding.weight", "distance_embedding.weight"),
        (f"{LAYER}.output.adapters.kin.adapter_up.weight", "adapters.kin.adapter_up.weight"),
        ("bert.encoder.layer.2.attention.self.query.weight", "layer.2.attention.self.query.weight"),
        ("bert.embeddings.language_embeddings.weight", "language_embeddings.weight"),
    ],
)
def test_weights_that_transformers_leaves_out(teacher: Path, sample_text: Path, name: str, said: str) -> None:
    add_weights(teacher, **{name: torch.ones(32, 32)})
    message = refused(teacher, sample_text)
    assert said in message and "which BertForMaskedLM of transformers does not use" in message


def test_heads_of_other_tasks_are_of_no_matter(teacher: Path, sample_text: Path, tmp_path: Path) -> None:
    others = ("bert.pooler.dense.weight", "cls.seq_relationship.weight", "bert.embeddings.position_ids")
    add_weights(teacher, **{name: torch.ones(32, 32) for name in others})
    assert not build_cache(build_settings(tmp_path / "kin.zarr", teacher, sample_text)).missing("train")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key, which BertForMaskedLM"),
        ({"is_decoder": True}, "is_decoder: it sees only the words before each"),
        ({"vocab_size": 506}, r"embeddings.weight has the shape [500, 32] in the checkpoint, [506, 32] by config.json"),
        ({"hidden_size": "32"}, "its tokenizer cannot be loaded"),
    ],
)
def test_a_config_that_says_something_else(teacher: Path, sample_text: Path, fields: dict[str, Any], said: str) -> None:
    change_config(teacher, **fields)
    assert said in refused(teacher, sample_text)


def test_a_tokenizer_of_a_later_version(teacher: Path, sample_text: Path) -> None:
    state = json.loads((teacher / "tokenizer.json").read_text())
    (teacher / "tokenizer.json").write_text(json.dumps(state | {"pre_tokenizer": {"type": "Future"}}))
    message = refused(teacher, sample_text)
    assert message.startswith(f"teacher {teacher}: its tokenizer cannot be loaded; ")


def of_family(folder: Path, text: Path, config: type[PretrainedConfig], **fields: Any) -> Path:
    """A teacher of some family with byte pairs and random weights."""
    folder.mkdir()
    size = byte_pairs(folder, text)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(
        config(vocab_size=size, **TINY | SPECIAL_IDS | fields)  # type: ignore[arg-type]
    ).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # DeBERTa until transformers 5.20
@pytest.mark.parametrize("config", [MPNetConfig, DebertaV2Config])
def test_where_no_attention_can_be_captured_a_build_without_maps_is_advised_and_works(
    tmp_path: Path, sample_text: Path, config: type[PretrainedConfig]
) -> None:
    folder = of_family(tmp_path / "teacher", sample_text, config)
    message = refused(folder, sample_text)
    assert "could not be captured" in message and message.endswith("--attention-layers none")
    cache = build_cache(build_settings(tmp_path / "out" / "kin.zarr", folder, sample_text, attention_layers="none"))
    assert not cache.missing("train")


def test_rows_whose_reading_depends_on_padding(tmp_path: Path, sample_text: Path) -> None:
    """FNet mixes all positions of a batch, padding too."""
    folder = of_family(tmp_path / "teacher", sample_text, FNetConfig)
    message = refused(folder, sample_text, attention_layers="none")
    assert "FNetForMaskedLM reads a row differently beside another, or with padding behind it" in message


@pytest.mark.parametrize("config", [CamembertConfig, Data2VecTextConfig])
def test_positions_that_begin_after_the_padding_id(
    tmp_path: Path, sample_text: Path, config: type[PretrainedConfig]
) -> None:
    folder = of_family(tmp_path / "teacher", sample_text, config)
    assert refused(folder, sample_text, seq_len=63).endswith("--seq-len 63: this teacher reads at most 62 tokens")
    settings = build_settings(tmp_path / "out" / "kin.zarr", folder, sample_text, seq_len=62)
    assert not build_cache(settings).missing("train")


def test_a_head_of_an_unknown_kind(tmp_path: Path, sample_text: Path) -> None:
    """MobileBERT's last layer is two matrices side by side."""
    folder = of_family(tmp_path / "teacher", sample_text, MobileBertConfig, embedding_size=16, intra_bottleneck_size=16)
    assert "MobileBertForMaskedLM is a masked LM of an unknown kind" in refused(folder, sample_text)


def test_a_vocabulary_with_gaps(tmp_path: Path, sample_text: Path) -> None:
    """A vocab.txt that names pieces twice: the first of both ids belongs to no piece."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    bert(folder, sample_text)
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    twice = [*pieces[:5], "a", "b", *pieces[5:]]
    (folder / "vocab.txt").write_text("\n".join(twice), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    change_config(folder, vocab_size=len(twice))
    add_weights(
        folder,
        **{
            "bert.embeddings.word_embeddings.weight": torch.randn(len(twice), 32),
            "cls.predictions.bias": torch.randn(len(twice)),
        },
    )
    cache = build_cache(build_settings(tmp_path / "kin.zarr", folder, sample_text))
    assert not verify(cache.root, deep=True).damage
    assert cache.recipe.vocab_size == len(twice) and cache.vocabulary.id.min() > 5 + 1


@pytest.mark.parametrize("keep", ["topk", "threshold"])
def test_a_padded_vocabulary_whose_last_tokens_can_never_be(
    teacher: Path, sample_text: Path, tmp_path: Path, keep: str
) -> None:
    bias = load_file(teacher / "model.safetensors")["cls.predictions.bias"]
    bias[-3:] = -torch.inf
    weights = load_file(teacher / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    add_weights(
        teacher,
        **{
            "cls.predictions.bias": torch.cat([bias[:-3], torch.zeros(3), torch.full((8,), -torch.inf)]),
            "bert.embeddings.word_embeddings.weight": torch.cat([weights, torch.randn(8, 32)]),
        },
    )
    change_config(teacher, vocab_size=508)
    cache = build_cache(build_settings(tmp_path / "kin.zarr", teacher, sample_text, keep=keep))
    assert not verify(cache.root, deep=True).damage
    for group in ("train", "validation"):
        for shard in cache.extent.indices(group):
            arrays = cache.read_shard(group, shard)
            assert not (arrays["topk_id" if keep == "topk" else "sample_id"] >= 500).any()


def nko(lines: int) -> str:
    """Text in a script that no tokenizer here knows."""
    letters = "ߊߋߌߍߎߏߐߓߔߕߖߗߘߙߚߛߜߝߞߟߠߡߢߣߤߥߦߧ"
    return "\n".join(" ".join(letters[i % 20 : i % 20 + 5] for i in range(line, line + 12)) for line in range(lines))


def test_a_script_that_the_teacher_does_not_know(sample_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "nko.txt").write_text(nko(300), encoding="utf-8")
    (tmp_path / "teacher").symlink_to(sample_teacher)
    message = refused(tmp_path / "teacher", tmp_path / "nko.txt")
    assert "of the tokens of this text are unknown to the tokenizer of" in message
    assert message.endswith("use a teacher that was trained on this language and script")


def test_a_text_of_which_some_is_unknown(
    sample_teacher: Path, sample_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = sample_text.read_text(encoding="utf-8") + nko(30)
    (tmp_path / "mixed.txt").write_text(mixed, encoding="utf-8")
    options = {"max_tokens": None, "attention_layers": "none", "start_layers": "none"}
    cache = build_cache(build_settings(tmp_path / "kin.zarr", sample_teacher, tmp_path / "mixed.txt", **options))
    assert "% of the tokens of this text are unknown to the tokenizer of" in capsys.readouterr().out
    unknown = cache.provenance["unknown_tokens"]
    assert 0.01 < unknown / cache.provenance["text_tokens"] < 0.5
    assert str(describe(open_cache(cache.root))["unknown_tokens"]).startswith(f"{unknown:,} (")


def test_a_tokenizer_with_another_padding_id(tmp_path: Path, sample_text: Path) -> None:
    """Positions of RoBERTa are counted from the padding id on."""
    folder = of_family(tmp_path / "teacher", sample_text, CamembertConfig)
    change_config(folder, pad_token_id=3)
    message = refused(folder, sample_text)
    assert "its positions begin after the padding id 3, but the padding id of its tokenizer is 1" in message


def test_how_many_masked_tokens_the_teacher_names_is_said(
    sample_teacher: Path, sample_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against plain transformers, on the masked tokens of the first rows."""
    settings = build_settings(tmp_path / "kin.zarr", sample_teacher, sample_text, weak_teacher=False, rows_per_shard=64)
    cache = build_cache(settings)
    said = next(line for line in capsys.readouterr().out.splitlines() if "masked tokens of this text" in line)
    model = AutoModelForMaskedLM.from_pretrained(sample_teacher, dtype=torch.float32).eval()
    rows = cache.read_shard("train", 0)
    counts = dict(zip(cache.vocabulary.id.tolist(), cache.vocabulary.count.tolist(), strict=True))
    frequent = max(counts, key=lambda i: counts[i])
    right = often = tried = 0
    for ids, length, positions, labels in zip(
        *(rows[name] for name in ("input_ids", "length", "target_position", "target_id")), strict=True
    ):
        inputs = torch.from_numpy(ids[: int(length)].astype("int64"))
        with torch.no_grad():
            best = model(inputs[None]).logits[0].argmax(1)
        for position, label in zip(positions.tolist(), labels.tolist(), strict=True):
            if position != 65535 and int(inputs[position]) == cache.recipe.mask_id:
                right, often, tried = right + (int(best[position]) == label), often + (label == frequent), tried + 1
    assert said == (
        f"the teacher predicts {right / tried:.1%} of {tried:,} masked tokens of this text; its most frequent token "
        f"alone would be right for {often / tried:.1%}"
    )
    assert right > 2 * often > 0


def test_a_teacher_that_is_hardly_better_than_one_token_is_doubted(
    sample_teacher: Path, sample_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checks, "HARDLY_BETTER", 1000.0)
    build_cache(build_settings(tmp_path / "kin.zarr", sample_teacher, sample_text, weak_teacher=False))
    assert "; that is hardly better: was the teacher trained on this language?\n" in capsys.readouterr().out


def test_a_teacher_that_knows_nothing_is_refused(
    sample_teacher: Path, sample_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its embeddings moved by one, as with a tokenizer of other ids: no error anywhere else."""
    teacher = Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))
    tensors = load_file(teacher / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name].roll(1, 0)
    save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    settings = build_settings(tmp_path / "kin.zarr", teacher, sample_text, weak_teacher=False, rows_per_shard=64)
    with pytest.raises(
        CometError, match=rf"^teacher {teacher}: the teacher predicts 0\.\d% of \d+ masked .* --weak-teacher"
    ):
        build_cache(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    build_cache(replace(settings, weak_teacher=True))
    assert "the teacher predicts 0." in capsys.readouterr().out


def test_rows_that_begin_otherwise_than_in_pretraining(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))
    file = teacher / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"cls_token": "<pad>"}))
    said = r"its tokenizer.json puts <s> before a text, but its cls token is <pad>: the teacher would read rows unlike"
    with pytest.raises(CometError, match=said):
        build_cache(build_settings(tmp_path / "kin.zarr", teacher, sample_text))
    file.write_text(json.dumps(config | {"sep_token": "<s>"}))
    with pytest.raises(CometError, match=r"puts </s> after a text, but its sep token is <s>: .* correct sep_token in"):
        build_cache(build_settings(tmp_path / "kin.zarr", teacher, sample_text))
