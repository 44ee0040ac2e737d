"""Writes the golden caches anew into this folder, for a new version of the format: `python write.py`."""

import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

sys.path.append(str(Path(__file__).parents[3]))

from helpers.builds import groups_of

from cache_tools import build_cache
from cache_tools.settings import BuildSettings, RerunSettings
from cache_tools.verify.verify import verify

HERE = Path(__file__).parent
TEXT = """\
Umwana asoma igitabo mu ishuri.
Umwarimu yigisha abana gusoma.
Inka zinywa amazi ku mugezi.
Umugore ateka ibiryo mu rugo.
Abana bakina umupira hanze.
Imvura igwa ku musozi.
Umugabo ahinga umurima we.
Izuba rirasa mu gitondo.
Amazi atemba mu mugezi.
Umwana anywa amata mu gitondo.
"""
PIECES = """
[PAD] [UNK] [CLS] [SEP] [MASK] . A I U a b d e g h i k m n o p r s t u v w y z
##m ##v ##u ##r ##a ##i ##e ##s ##h ##t ##k ##b ##n ##g ##o ##y ##w ##z ##p ##d
mu ##ma ##wa Um ##na ##zi ##ba ##mu ##ug ##ra ##ri
"""
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
SIGNALS: dict[str, Any] = {
    "seq_len": 16,
    "views": 1,
    "rows_per_shard": 4,
    "top_k": 6,
    "temperatures": (1.0, 2.0),
    "attention_layers": "all",
    "attention_queries": 4,
    "attention_keys": 8,
    "batch_size": 4,
    "device": "cpu",
}
STARTS: dict[str, dict[str, Any]] = {
    "threshold": {"start_layers": "all", "start_width": 16},
    "topk": {"start_layers": "last", "start_width": 8},
}


def write_teacher(folder: Path) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES.split()), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(folder)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        teacher, text = Path(name, "teacher"), Path(name, "text.txt")
        text.write_text(TEXT, encoding="utf-8")
        write_teacher(teacher)
        for keep, start in STARTS.items():
            root = Path(name, f"{keep}.zarr")
            settings = BuildSettings(root, "kin", str(teacher), (str(text),), keep=keep, **SIGNALS, **start)
            cache = build_cache(settings)
            report = verify(root, deep=True, again=RerunSettings(str(teacher)))
            assert not report.damage, report.damage
            arrays = {f"{group}/{name}": a for group, found in groups_of(root).items() for name, a in found.items()}
            np.savez_compressed(HERE / f"{keep}.npz", allow_pickle=False, **arrays)
            with tarfile.open(HERE / f"{keep}.tar.xz", "w:xz", preset=9) as archive:
                archive.add(root, root.name)
            print(keep, cache.recipe.recipe_id, cache.cache_id)


if __name__ == "__main__":
    main()
