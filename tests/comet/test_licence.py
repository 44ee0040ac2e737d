"""The licence of a teacher, from its card to the student's; and there, what the text was cleaned of."""

import shutil
from pathlib import Path

import pytest
from helpers.settings import build_settings
from huggingface_hub.repocard import metadata_load

from cache_tools import build_cache
from comet.distillation import distill
from comet.settings import StudentConfig


@pytest.mark.parametrize(("licence", "restricts"), [("cc-by-nc-sa-4.0", True), ("mit", False)])
def test_a_licence_that_restricts_use_is_said_at_every_stage(
    sample_teacher: Path,
    sample_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    licence: str,
    restricts: bool,
) -> None:
    teacher = Path(shutil.copytree(sample_teacher, tmp_path / "afro"))
    (teacher / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    line = sample_text.read_text(encoding="utf-8").split("\n")[0]
    (tmp_path / "dev.txt").write_text(line, encoding="utf-8")
    cache = build_cache(
        build_settings(tmp_path / "kin.zarr", teacher, sample_text, exclude=(str(tmp_path / "dev.txt"),))
    )
    built = capsys.readouterr().out
    said: list[str] = []
    result = distill([cache], StudentConfig(tmp_path / "student", student="nano", steps=1), said.append)
    card = (result.output / "README.md").read_text(encoding="utf-8")
    assert f"a teacher in the folder afro ({licence})" in card
    assert "  - left out: 1 of " in card
    assert " documents that share 8 words in a row with 1 evaluation file: dev.txt\n" in card
    assert metadata_load(result.output / "README.md") == {
        "language": ["kin"], "license": licence, "library_name": "transformers", "pipeline_tag": "fill-mask",
        "tags": ["distillation", "comet-distill"],
    }  # fmt: skip
    for text in (built, said[0], card):
        sentence = f"the licence of the teacher afro ({licence}) restricts its use, and that of students made from it"
        assert (sentence in text) == restricts
