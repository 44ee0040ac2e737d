"""Students of teachers of other families than XLM-R: each is an XLM-R with its teacher's tokenizer."""

from pathlib import Path

import pytest
import torch
from helpers.settings import build_settings
from helpers.tiny_teachers import TEACHERS
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache, build_cache
from cache_tools.errors import CometError
from comet import StudentConfig, distill


def cache_of(family: str, text: Path, folder: Path) -> Cache:
    teacher = folder / family
    teacher.mkdir()
    TEACHERS[family](teacher, text)
    return build_cache(build_settings(folder / "kin.zarr", teacher, text, max_tokens=None, views=2))


@pytest.mark.parametrize(
    ("family", "vocabulary"), [("bert", "full"), ("bert", "trimmed"), ("roberta", "full"), ("modernbert", "full")]
)
def test_a_student_comes_nearer_and_cuts_as_its_teacher(
    family: str, vocabulary: str, sample_text: Path, tmp_path: Path
) -> None:
    cache = cache_of(family, sample_text, tmp_path)
    result = distill([cache], StudentConfig(tmp_path / "student", student="nano", vocabulary=vocabulary, steps=20))
    assert result.after.kl < result.before.kl
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / family, tmp_path / "student"))
    text = sample_text.read_text(encoding="utf-8").splitlines()[0]
    assert ours.tokenize(text) == theirs.tokenize(text)
    encoded = ours(text, return_tensors="pt")
    assert ours.convert_ids_to_tokens(encoded["input_ids"][0]) == theirs.convert_ids_to_tokens(
        theirs(text)["input_ids"]
    )
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")(**encoded).logits
    assert logits.shape[-1] == len(ours) and logits.isfinite().all()


def test_byte_pairs_cannot_be_trimmed(sample_text: Path, tmp_path: Path) -> None:
    cache = cache_of("roberta", sample_text, tmp_path)
    with pytest.raises(CometError, match="--vocabulary trimmed: a BPE tokenizer builds its tokens from one another"):
        distill([cache], StudentConfig(tmp_path / "student", student="nano", vocabulary="trimmed", steps=1))
