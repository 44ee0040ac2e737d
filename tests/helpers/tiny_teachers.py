"""Masked LMs of other families than XLM-R: real classes and tokenizers, random weights, a tokenizer learnt from a
text. Each function writes one into an empty folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.processors import RobertaProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # else all attention would be even, and all logits near zero
}
NAMES = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
SPECIAL_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def word_pieces(folder: Path, text: Path) -> int:
    """A WordPiece tokenizer with BERT's special tokens; its number of pieces."""
    pieces = BertWordPieceTokenizer(lowercase=False)
    pieces.train([str(text)], vocab_size=500, show_progress=False)
    pieces.save_model(str(folder))
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    return int(pieces.get_vocab_size())


def bert(folder: Path, text: Path, **changes: Any) -> None:
    """WordPiece, 500 pieces."""
    size = word_pieces(folder, text)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=size, **TINY | changes)).save_pretrained(folder)


def of_kind(model_class: str, **settings: Any) -> Callable[[Path, Path], None]:
    """A teacher of a class of transformers, by name, since older versions lack some; with WordPiece and random weights,
    biases and norms among them."""

    def write(folder: Path, text: Path) -> None:
        size, model = word_pieces(folder, text), getattr(transformers, model_class)
        torch.manual_seed(0)
        chosen = {name: value for name, value in (TINY | settings).items() if value is not None}
        teacher = model(model.config_class(vocab_size=size, **chosen))
        for parameter in teacher.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        teacher.save_pretrained(folder)

    return write


EUROBERT_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
OTHER_HEADS = {
    "electra": of_kind("ElectraForMaskedLM", embedding_size=24),  # as in Serengeti-E250
    "distilbert": of_kind(
        "DistilBertForMaskedLM", dim=32, n_layers=2, n_heads=4, hidden_dim=48, intermediate_size=None
    ),
    "albert": of_kind("AlbertForMaskedLM", embedding_size=24),
    "gte": of_kind("GteForMaskedLM"),
    "eurobert": of_kind("EuroBertForMaskedLM", num_key_value_heads=2, **EUROBERT_IDS),  # two heads share their keys
    "rembert": of_kind("RemBertForMaskedLM", input_embedding_size=16, output_embedding_size=40),
}
"""Teachers whose students are of another family, XLM-R's."""


def byte_pairs(folder: Path, text: Path) -> int:
    """A byte-level BPE tokenizer with RoBERTa's special tokens; its number of pieces."""
    pieces = ByteLevelBPETokenizer()
    pieces.train([str(text)], vocab_size=500, special_tokens=list(NAMES.values()), show_progress=False)
    pieces.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, cls_token="<s>", sep_token="</s>", **NAMES
    ).save_pretrained(folder)
    return int(pieces.get_vocab_size())


def roberta(folder: Path, text: Path) -> None:
    size = byte_pairs(folder, text)
    torch.manual_seed(0)
    RobertaForMaskedLM(RobertaConfig(vocab_size=size, **TINY, **SPECIAL_IDS)).save_pretrained(folder)


def modernbert(folder: Path, text: Path, **changes: Any) -> None:
    """Rotary positions, and attention to 8 neighbours in every layer but each third one. Every norm has its own
    scales, every token its own bias."""
    size = byte_pairs(folder, text)
    torch.manual_seed(0)
    others = {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 8}
    config = ModernBertConfig(vocab_size=size, **TINY | {"num_hidden_layers": 4} | SPECIAL_IDS | others | changes)
    model = ModernBertForMaskedLM(config)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(model.decoder.bias, std=0.5)
    model.save_pretrained(folder)


BYTES = [f"<0x{i:02X}>" for i in range(256)]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def byte_fallback(lines: list[str], special: list[str], without: tuple[str, ...] = (), size: int = 900) -> Tokenizer:
    """A BPE as Gemma's: spaces are characters, a line is one word, unknown characters become bytes; learnt from words.

    `without` are bytes that it lacks; the others come on top of `size`.
    """
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    learnt.train_from_iterator(lines, trainer)
    state = json.loads(learnt.to_str()) | {"pre_tokenizer": None}
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    size, missing = len(state["model"]["vocab"]), [byte for byte in BYTES if byte not in without]
    state["model"]["vocab"] |= {byte: size + i for i, byte in enumerate(missing)}
    return Tokenizer.from_str(json.dumps(state))


MMBERT_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 1, "sep_token_id": 1}
"""As in mmBERT's config.json, whose cls is not that of the tokenizer."""


def gemma_tokenizer(folder: Path, text: Path, size: int = 900) -> int:
    """Gemma's tokenizer as mmBERT has it, with <bos> for cls; its number of pieces."""
    pieces = byte_fallback(text.read_text(encoding="utf-8").splitlines(), GEMMA, size=size)
    pieces.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=pieces, cls_token="<bos>", sep_token="<eos>", **names).save_pretrained(
        folder
    )
    return pieces.get_vocab_size()


def mmbert(folder: Path, text: Path) -> None:
    """As mmBERT is published: a ModernBERT with Gemma's tokenizer, whose cls is <bos>, though config.json says that it
    is 1; weights as a pickle only."""
    size = gemma_tokenizer(folder, text)
    others = {"num_hidden_layers": 4, "local_attention": 8}
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(ModernBertConfig(vocab_size=size, **TINY | MMBERT_IDS | others))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


TEACHERS: dict[str, Callable[[Path, Path], None]] = {
    "bert": bert,
    "roberta": roberta,
    "modernbert": modernbert,
    "mmbert": mmbert,
}
