"""Masked LMs of other families than XLM-R: real classes and tokenizers, random weights, a tokenizer learnt from a
text. Each function writes one into an empty folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
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


def bert(folder: Path, text: Path, **changes: Any) -> None:
    """WordPiece, 500 pieces."""
    pieces = BertWordPieceTokenizer(lowercase=False)
    pieces.train([str(text)], vocab_size=500, show_progress=False)
    pieces.save_model(str(folder))
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=pieces.get_vocab_size(), **TINY | changes)).save_pretrained(folder)


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


TEACHERS: dict[str, Callable[[Path, Path], None]] = {"bert": bert, "roberta": roberta, "modernbert": modernbert}
