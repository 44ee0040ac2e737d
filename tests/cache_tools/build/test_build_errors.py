"""A call that cannot be, or a broken input, gives one clear line, the right exit code and no change on disk."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from helpers.builds import Running, assert_one_error_line, build, build_arguments, digests
from safetensors.torch import load_file, save_file
from transformers import FlaubertConfig, FlaubertWithLMHeadModel, GPT2Config, XLMRobertaModel

QUICK: dict[str, Any] = {"max_tokens": 200, "seq_len": 32, "top_k": 4, "attention_keys": 4}


@dataclass(frozen=True)
class Folders:
    """`inputs`, which nothing may change, a log, and the sample to make bad inputs from."""

    inputs: Path
    log: Path
    teacher: Path
    text: Path

    def write(self, name: str, content: bytes) -> Path:
        path = self.inputs / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def copy_teacher(self) -> Path:
        return shutil.copytree(self.teacher, self.inputs / "teacher")


@pytest.fixture
def folders(tmp_path: Path, sample_teacher: Path, sample_text: Path) -> Folders:
    (tmp_path / "inputs").mkdir()
    return Folders(tmp_path / "inputs", tmp_path / "log", sample_teacher, sample_text)


def check(folders: Folders, code: int, words: tuple[str, ...], options: dict[str, Any]) -> None:
    """Runs the build with these options over the sample's and expects the one line and an untouched folder."""
    before = digests(folders.inputs)
    given = {"teacher": folders.teacher, "text": folders.text, "out": folders.inputs / "kin.zarr"} | QUICK | options
    assert_one_error_line(build(log=folders.log, **given), code, *words)
    assert digests(folders.inputs) == before


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"lang": "klingon"}, "--lang 'klingon'"),
    ({"lang": "k1"}, "--lang 'k1'"),
    ({"attention_layers": "4"}, "--attention-layers 4"),
    ({"attention_layers": "-5"}, "within 4 layers"),
    ({"attention_layers": "every:0"}, "--attention-layers every:0"),
    ({"attention_layers": "first"}, "expected last, all, none"),
    ({"attention_keys": 33}, "--attention-keys 33"),
    ({"seq_len": 7, "attention_keys": 4}, "--seq-len 7"),
    ({"seq_len": 513}, "at most 512"),
    ({"top_k": 0}, "--top-k 0"),
    ({"top_k": 8001}, "has 8000 tokens"),
    ({"top_k": 1, "keep": "threshold"}, "--top-k 1: expected 2 to 16384"),
    ({"temperatures": "2", "keep": "threshold"}, "--temperatures 2: expected 1 among them"),
    ({"mask_prob": 0}, "--mask-prob 0"),
    ({"mask_prob": "nan"}, "--mask-prob nan"),
    ({"temperatures": "1,1"}, "--temperatures 1,1"),
    ({"temperatures": "0"}, "--temperatures 0"),
    ({"temperatures": "nan"}, "--temperatures nan"),
    ({"views": 0}, "--views 0"),
    ({"max_tokens": 0}, "--max-tokens 0"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"seed": -1}, "--seed -1"),
    ({"rows_per_shard": 0}, "--rows-per-shard 0"),
    ({"rows_per_shard": 2**20, "seq_len": 512, "max_tokens": 2000}, "use fewer --rows-per-shard"),
    ({"device": "quantum"}, "--device quantum"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[words for _, words in OPTIONS])
def test_an_option_that_cannot_be(options: dict[str, Any], words: str, folders: Folders) -> None:
    check(folders, 2, (words,), options)


@pytest.mark.parametrize("wrong", [["--top-k", "many"], ["--keep", "all"], ["--no-such-option"]])
def test_an_option_that_cannot_be_parsed(wrong: list[str], folders: Folders) -> None:
    arguments = build_arguments(folders.inputs / "kin.zarr", folders.teacher, folders.text)
    ended = Running([*arguments, *wrong], folders.log).wait()
    assert ended.code == 2
    assert ended.stderr.splitlines()[-1].lower().startswith("error: ")
    assert not any(folders.inputs.iterdir())


def test_no_text_given(folders: Folders) -> None:
    ended = Running(["build", "--lang", "lug", "--out", str(folders.inputs / "kin.zarr")], folders.log).wait()
    assert_one_error_line(ended, 2, "--text")
    assert not any(folders.inputs.iterdir())


TEXTS: list[tuple[str, bytes, int, tuple[str, ...]]] = [
    ("nothing.txt", b"", 2, ("nothing.txt", "no text")),
    ("blank.txt", b"\n  \n\t\n", 2, ("blank.txt", "no text")),
    ("text.pdf", b"%PDF-1.7", 2, ("text.pdf", ".txt")),
    ("latin1.txt", b"Mama yazindutse\nna\xefve\n", 1, ("latin1.txt line 2", "not UTF-8")),
    ("utf16.txt", "Mama yazindutse".encode("utf-16"), 1, ("utf16.txt: is UTF-16", "iconv")),
    ("broken.jsonl", b'{"text": "Mama"}\n{"text": \n', 1, ("broken.jsonl line 2", "JSON")),
    ("other.jsonl", b'{"body": "Mama"}\n', 1, ("other.jsonl line 1", '"text"')),
    ("cut.txt.gz", gzip.compress(b"Mama yazindutse kare\n" * 999)[:-20], 1, ("cut.txt.gz line", "cannot be read")),
    ("plain.txt.gz", b"Mama yazindutse kare\n", 1, ("plain.txt.gz line 1", "cannot be read")),
    ("plain.txt.xz", b"Mama yazindutse kare\n", 1, ("plain.txt.xz line 1", "cannot be read")),
    ("plain.txt.zst", b"Mama yazindutse kare\n", 1, ("plain.txt.zst line 1", "cannot be read")),
    ("plain.parquet", b"Mama yazindutse kare\n", 1, ("plain.parquet", "Parquet")),
]


@pytest.mark.parametrize(("name", "content", "code", "words"), TEXTS, ids=[text[0] for text in TEXTS])
def test_text_that_cannot_be_used(
    name: str, content: bytes, code: int, words: tuple[str, ...], folders: Folders
) -> None:
    check(folders, code, words, {"text": folders.write(name, content)})


def test_text_that_is_not_there(folders: Folders) -> None:
    check(folders, 2, ("nowhere.txt", "no such file"), {"text": folders.inputs / "nowhere.txt"})


def test_a_folder_without_text(folders: Folders) -> None:
    (folders.inputs / "empty").mkdir()
    check(folders, 2, ("empty", "holds no"), {"text": folders.inputs / "empty"})


def nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def no_head(folder: Path) -> None:
    XLMRobertaModel.from_pretrained(folder).save_pretrained(folder)


def no_masked_lm(folder: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(folder)


def unknown_head(folder: Path) -> None:
    config = FlaubertConfig(vocab_size=8000, n_layers=1, emb_dim=8, n_heads=1)
    (folder / "model.safetensors").unlink()
    FlaubertWithLMHeadModel(config).save_pretrained(folder)


def without_token(role: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        del settings[f"{role}_token"]
        file.write_text(json.dumps(settings))

    return damage


def too_small_a_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if len(tensor) == 8000:
            tensors[name] = tensor[:7999].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7999}))


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.bias"][5] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


TEACHERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "not there": (nothing_there, ("cannot be loaded",)),
    "empty folder": (empty_folder, ("cannot be loaded",)),
    "no masked-LM head": (no_head, ("no masked-LM head",)),
    "not a masked LM": (no_masked_lm, ("gpt2", "not a masked LM")),
    "unknown head": (unknown_head, ("head of an unknown kind",)),
    "no mask token": (without_token("mask"), ("no mask token, so it cannot teach masked words",)),
    "no cls token": (without_token("cls"), ("no cls token, which rows of a cache need",)),
    "tokenizer larger than the head": (too_small_a_head, ("8000", "7999")),
    "NaN in the weights": (not_a_number, ("nan",)),
    "cut config": (cut("config.json"), ("cannot be loaded",)),
    "cut weights": (cut("model.safetensors"), ("cannot be loaded",)),
    "cut tokenizer": (cut("tokenizer.json"), ("cannot be loaded",)),
    "no weights": (without("model.safetensors"), ("cannot be loaded",)),
    "no tokenizer": (without("tokenizer.json"), ()),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_cannot_be_used(name: str, folders: Folders) -> None:
    folder = folders.copy_teacher()
    damage, words = TEACHERS[name]
    damage(folder)
    check(folders, 2 if name == "not there" else 1, (f"teacher {folder}", *words), {"teacher": folder})


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.sprung), "w"))


def test_a_teacher_never_runs_code_of_its_weights(folders: Folders) -> None:
    folder = folders.copy_teacher()
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.bias": Trap(folders.inputs / "sprung")}, folder / "pytorch_model.bin")
    check(folders, 1, (f"teacher {folder}", "cannot be loaded"), {"teacher": folder})


def test_a_teacher_never_runs_code_of_its_folder(folders: Folders) -> None:
    folder = folders.copy_teacher()
    sprung = folders.inputs / "sprung"
    (folder / "own.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForMaskedLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    check(folders, 1, (f"teacher {folder}", "cannot be loaded"), {"teacher": folder})


def test_out_is_a_file(folders: Folders) -> None:
    check(folders, 2, ("kin.zarr: is a file", "expected a folder"), {"out": folders.write("kin.zarr", b"my thesis")})


def test_out_is_a_folder_of_something_else(folders: Folders) -> None:
    check(
        folders,
        2,
        ("kin.zarr", "not a cache (it holds thesis.txt)"),
        {"out": folders.write("kin.zarr/thesis.txt", b"my thesis").parent},
    )


def test_out_is_another_zarr_hierarchy(folders: Folders) -> None:
    zarr.create_array(folders.inputs / "kin.zarr", name="mine", data=torch.arange(3).numpy())
    check(folders, 2, ("kin.zarr", "not a cache of comet"), {})


def test_out_lies_below_a_file(folders: Folders) -> None:
    out = folders.write("thesis.txt", b"my thesis") / "kin.zarr"
    check(folders, 2, (f"--out {out}", "cannot be created (Not a directory)"), {"out": out})


@pytest.fixture
def locked(folders: Folders) -> Iterator[Path]:
    folder = folders.inputs / "locked"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def test_out_lies_in_a_read_only_folder(folders: Folders, locked: Path) -> None:
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    check(folders, 2, (str(locked / "kin.zarr"), "cannot be created"), {"out": locked / "kin.zarr"})


def test_out_lies_where_nobody_can_write(folders: Folders) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here, the one folder that not even root can write into")
    check(folders, 2, ("--out /proc/kin.zarr", "cannot be created"), {"out": Path("/proc/kin.zarr")})
