"""An exported model is compared on text of its own language, where its cache is still at hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from comet.export.texts import Texts, texts_for

IT_IS_THE_SAMPLE = "the sample's Kinyarwanda text, since no text of its own is at hand"


@pytest.fixture(scope="module")
def swahili(sample_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, list[str]]:
    """A cache of text that is no part of the sample, and its sentences."""
    folder = tmp_path_factory.mktemp("swa")
    sentences = [f"Mtoto wa {number} alienda shuleni asubuhi na mapema." for number in range(200)]
    (folder / "text.txt").write_text("\n".join(sentences), encoding="utf-8")
    settings = build_settings(folder / "swa.zarr", sample_teacher, folder / "text.txt", views=2)
    return build_cache(replace(settings, language="swa")), sentences


def student(folder: Path, *caches: Path) -> Path:
    """What lies beside a student of these caches."""
    (folder / "student").mkdir()
    (folder / "student.toml").write_text(f"cache = {json.dumps([str(cache) for cache in caches])}", encoding="utf-8")
    return folder / "student"


def test_it_is_the_validation_text_of_the_student_s_cache(swahili: tuple[Cache, list[str]], tmp_path: Path) -> None:
    cache, sentences = swahili
    texts = texts_for(student(tmp_path, cache.root))
    assert texts.described == "Swahili text of its cache" and len(texts.sentences) > 3
    assert len(set(texts.sentences)) == len(texts.sentences), "each of one view alone"
    assert set(texts.sentences) & set(sentences), "the others are what a row holds of a sentence"
    assert all(text in " ".join(sentences) for text in texts.sentences)


def test_without_its_cache_it_is_the_sample(
    sample_text: Path, swahili: tuple[Cache, list[str]], tmp_path: Path
) -> None:
    sample = Texts(IT_IS_THE_SAMPLE, sample_text.read_text(encoding="utf-8").splitlines())
    assert texts_for(tmp_path / "alone") == sample
    assert texts_for(student(tmp_path, tmp_path / "gone.zarr")) == sample
    (tmp_path / "student.toml").write_text("cache = 5")
    assert texts_for(tmp_path / "student") == sample
    damaged = shutil.copytree(swahili[0].root, tmp_path / "damaged.zarr")
    shutil.rmtree(damaged / "validation")
    (tmp_path / "student.toml").write_text(f'cache = ["{damaged}"]')
    assert texts_for(tmp_path / "student") == sample
