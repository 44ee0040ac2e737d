"""Loading a teacher, taking its head apart, telling which one it is, and what one forward pass keeps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from cache_tools.attention import AttentionCapture
from cache_tools.components import principal_components
from cache_tools.errors import CometError
from cache_tools.models import weights_sha256
from cache_tools.teacher.model import Teacher, load_teacher, split_head
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.text.tokenizer import encode_texts, tokenizer_sha256

LETTERS = "abcdefghij"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "umunsi", "mwiza"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(sample_teacher: Path) -> Teacher:
    return load_teacher(str(sample_teacher))


@pytest.fixture
def folder(sample_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the sample teacher to change."""
    return Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))


def wordpiece(*, mask: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, **({"mask_token": "[MASK]"} if mask else {}))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a WordPiece tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(path)
    wordpiece().save_pretrained(path)
    return path


def padded_batch(vocab_size: int, pad: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, vocab_size, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, pad), mask


def error_of(call: Callable[[str], object], folder: Path) -> str:
    with pytest.raises(CometError) as caught:
        call(str(folder))
    message = str(caught.value)
    assert message.startswith(f"teacher {folder}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("which", ["sample", "bert"])
def test_the_head_taken_apart_gives_the_models_own_logits(which: str, sample_teacher: Path, bert_folder: Path) -> None:
    path = sample_teacher if which == "sample" else bert_folder
    whole = AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    teacher = load_teacher(str(path))
    ids, mask = padded_batch(whole.config.vocab_size, whole.config.pad_token_id, [20, 11, 3])
    with torch.no_grad():
        expected = whole(ids, attention_mask=mask).logits[mask]
        features = teacher.transform(teacher.hidden_states(ids, mask, None))[mask]
        found = teacher.head.logits(features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_random_bert_shows_its_attention(bert_folder: Path) -> None:
    teacher = load_teacher(str(bert_folder))
    capture = AttentionCapture((0, 1), torch.tensor([[[0, 19], [3, 8]], [[10, 2], [0, 5]]]))
    with torch.no_grad():
        teacher.hidden_states(*padded_batch(len(WORDS), 0, [20, 11]), capture)
    torch.testing.assert_close(capture.rows().sum(3), torch.ones(2, 2, 2), rtol=0, atol=1e-6)


def test_a_loaded_teacher_is_frozen_and_in_float32(teacher: Teacher) -> None:
    assert not teacher.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.model.parameters())
    assert teacher.input_embedding.shape == (8000, 192)
    assert teacher.head.weight.shape == (8000, 192)
    assert teacher.head.bias.shape == (8000,)
    assert teacher.parameters == sum(p.numel() for p in teacher.model.parameters())


def test_a_teacher_moves_to_another_dtype_with_its_head(folder: Path) -> None:
    moved = load_teacher(str(folder)).to(CPU, torch.bfloat16)
    assert {p.dtype for p in moved.model.parameters()} == {torch.bfloat16}
    assert (moved.head.weight.dtype, moved.head.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    features = torch.ones(1, 192, dtype=torch.bfloat16)
    assert moved.head.logits(features).dtype == torch.float32


def test_the_identity_is_that_of_the_weights_not_of_the_files(folder: Path, teacher: Teacher) -> None:
    """The same tensors as pytorch_model.bin, with another config text and another folder name."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "another text"}))
    assert load_teacher(str(folder)).sha256 == teacher.sha256


def test_one_changed_weight_is_another_teacher(folder: Path, teacher: Teacher) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "roberta.encoder.layer.2.output.dense.weight"
    weights[name][5, 7] = torch.nextafter(weights[name][5, 7].float(), torch.tensor(9.0)).half() + 2**-10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_teacher(str(folder)).sha256 != teacher.sha256


def test_weights_in_another_dtype_are_another_teacher(folder: Path, teacher: Teacher) -> None:
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert load_teacher(str(folder)).sha256 != teacher.sha256


def test_the_identity_of_weights_is_fixed() -> None:
    """Caches already built hold it: SHA-256 over `name dtype [shape]`, a line feed and the bytes, names sorted."""

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("b", torch.tensor([[1.0], [2.0]]))
            self.register_buffer("a", torch.tensor([3], dtype=torch.int32))

    assert weights_sha256(Two()) == "b7b6a54c6e7d84ec47b8dbcab57ee9fd7fe159918c1f6b047846587385f6c105"  # type: ignore[arg-type]


def test_a_folder_without_files(tmp_path: Path) -> None:
    expected = "expected a folder or a name on the hub with config.json, a tokenizer and model.safetensors or "
    assert f"its model cannot be loaded; {expected}" in error_of(load_teacher, tmp_path)
    assert f"its tokenizer cannot be loaded; {expected}" in error_of(load_teacher_tokenizer, tmp_path)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(tmp_path: Path) -> None:
    message = error_of(load_teacher, tmp_path / "nothing")
    assert message.endswith(": no such folder, and not a name on the hub such as Davlan/afro-xlmr-large")


def test_an_adapter_is_not_left_out(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    for load in (load_teacher, load_teacher_tokenizer):
        assert error_of(load, folder).endswith(
            ": holds an adapter of peft (adapter_config.json), which would be left out; merge it into its model with "
            "peft's merge_and_unload(), and save that and the tokenizer in a new folder"
        )


def test_weights_that_are_missing_or_broken(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "its model cannot be loaded" in error_of(load_teacher, folder)
    weights.unlink()
    assert "its model cannot be loaded" in error_of(load_teacher, folder)


def test_a_checkpoint_without_its_head(folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.roberta.save_pretrained(folder)
    message = error_of(load_teacher, folder)
    assert "the checkpoint has no masked-LM head or is incomplete (missing lm_head." in message
    assert message.endswith("; a head of random numbers would teach nothing")


def test_a_model_that_predicts_no_masks(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert error_of(load_teacher, tmp_path).endswith("a gpt2 model is not a masked LM; choose one that is")


def test_a_head_of_an_unknown_kind(bert_folder: Path) -> None:
    model = BertForMaskedLM.from_pretrained(bert_folder)
    del model.cls
    model.get_output_embeddings = lambda: torch.nn.Linear(32, 7)  # type: ignore[method-assign]
    with pytest.raises(CometError, match="BertForMaskedLM has a masked-LM head of an unknown kind"):
        split_head(model, "0" * 64, "strange")


def test_a_head_that_does_something_more_is_noticed(folder: Path) -> None:
    """Its parts must give the model's own logits, or the cache would hold another teacher's."""
    model = load_teacher(str(folder)).model
    model.lm_head.layer_norm.register_forward_hook(lambda *_: None)
    split_head(model, "0" * 64, "sample")
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * 1.5)
    with pytest.raises(CometError, match=r"teacher sample: its head taken apart gives logits that differ by "):
        split_head(model, "0" * 64, "sample")


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    wordpiece(mask=False).save_pretrained(tmp_path)
    message = error_of(load_teacher_tokenizer, tmp_path)
    assert "its tokenizer has no mask token, so it cannot teach masked words; choose a masked LM such as" in message


@pytest.mark.parametrize("text", ["<mask>", "a <mask> b", "<s></s>", "<pad><unk>", "</s>"])
def test_special_tokens_in_a_text_are_text(sample_teacher: Path, text: str) -> None:
    tokenizer = load_teacher_tokenizer(str(sample_teacher))
    (ids,) = encode_texts(tokenizer, [text])
    marks = {tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    assert len(ids)
    assert not marks & set(ids.tolist())


def test_a_tokenizer_neither_cuts_nor_pads(folder: Path) -> None:
    state = Tokenizer.from_file(str(folder / "tokenizer.json"))
    state.enable_truncation(4)
    state.enable_padding(length=9)
    state.save(str(folder / "tokenizer.json"))
    encode = load_teacher_tokenizer(str(folder)).backend_tokenizer.encode_batch_fast
    short, long = encode(["a", "umunsi mwiza " * 50], add_special_tokens=False)
    assert len(short.ids) < 4
    assert len(long.ids) >= 100


def test_the_identity_of_a_tokenizer(folder: Path, sample_teacher: Path) -> None:
    """It changes with a piece, a score or the normaliser, not with padding, truncation or the text of a file."""
    whole = tokenizer_sha256(load_teacher_tokenizer(str(sample_teacher)))
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"padding": None, "truncation": None}, indent=4))
    assert tokenizer_sha256(load_teacher_tokenizer(str(folder))) == whole
    vocabulary = list(state["model"]["vocab"])
    vocabulary[100] = [vocabulary[100][0], vocabulary[100][1] - 1]
    for changed in ({"normalizer": {"type": "Lowercase"}}, {"model": state["model"] | {"vocab": vocabulary}}):
        file.write_text(json.dumps(state | changed))
        assert tokenizer_sha256(load_teacher_tokenizer(str(folder))) != whole


def test_a_wordpiece_tokenizer_is_ready_for_packing(bert_folder: Path) -> None:
    tokenizer = load_teacher_tokenizer(str(bert_folder))
    roles = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    assert roles == (0, 2, 3, 4)
    encoding = tokenizer.backend_tokenizer.encode("umunsi abc", add_special_tokens=False)
    assert encoding.tokens == ["umunsi", "a", "##b", "##c"]


@pytest.mark.parametrize("width", [1, 5, 24])
def test_principal_components_equal_those_of_numpy(width: int) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 24)) * np.geomspace(3, 0.1, 24) + generator.normal(size=24)
    found = principal_components(torch.from_numpy(rows).float(), torch.full((60,), 7), width)
    centred = rows - rows.mean(0)
    directions = np.linalg.svd(centred)[2][:width].T  # [H, width]
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(width)])
    assert (found.dtype, found.shape) == (torch.float16, (60, width))
    np.testing.assert_allclose(found.numpy(), centred @ directions, rtol=0, atol=0.01)


def test_principal_components_count_a_row_as_often_as_it_occurs() -> None:
    generator = np.random.default_rng(1)
    rows = torch.from_numpy(generator.normal(size=(20, 6)) * np.geomspace(3, 0.1, 6)).float()
    count = torch.from_numpy(generator.integers(1, 9, 20))
    repeated = rows.repeat_interleave(count, dim=0)
    expected = principal_components(repeated, torch.ones(len(repeated)), 4)[torch.cumsum(count, 0) - 1]
    torch.testing.assert_close(principal_components(rows, count, 4), expected, rtol=0, atol=0.005)
