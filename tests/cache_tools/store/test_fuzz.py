"""Whatever a cache says of itself, it is understood or refused with our own error."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from helpers.hostile_json import change_bytes, change_structure, changed, hostile_files, read_what_it_says
from helpers.small_caches import make_cache, small_recipe

PROVENANCE = {
    "language": "kin",
    "language_name": "Kinyarwanda",
    "teacher": "teacher",
    "text": [{"name": "text.txt", "bytes": 280, "sha256": "a" * 64, "licence": None}],
    "text_tokens": 185,
    "documents": 10,
    "excluded": [{"name": "test.tsv"}],
    "excluded_documents": 1,
    "excluded_run_words": 8,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "kin.zarr"
    recipe = small_recipe(keep="threshold")
    make_cache(root, recipe, attributes={"provenance": PROVENANCE, "settings": {"dtype": "float32", "batch_size": 4}})
    return root


@pytest.mark.parametrize("seed", range(10))
def test_what_a_hostile_cache_says_is_understood_or_refused(cache: Path, seed: int) -> None:
    drawn, kinds, refused = random.Random(seed), Counter[str](), 0
    for _ in range(40):
        kind, files = hostile_files(cache, drawn)
        with changed(cache, files):
            refused += read_what_it_says(cache) == "refused"
        kinds[kind] += 1
    assert refused > 25 and len(kinds) > 8


def test_the_cache_is_sound_in_between(cache: Path) -> None:
    assert "Kinyarwanda" in read_what_it_says(cache)


def test_changes_are_changes() -> None:
    drawn = random.Random(0)
    sound = {"a": [1, {"b": "c"}], "d": {"e": None}}
    texts = set()
    for _ in range(200):
        value = json.loads(json.dumps(sound))
        change_structure(value, drawn)
        texts.add(json.dumps(value))
    assert len(texts) > 60
    assert len({change_bytes(b'{"a":1}', drawn) for _ in range(200)}) > 60
