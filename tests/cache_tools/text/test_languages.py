"""Languages by their codes, and what the codes share."""

import pytest

from cache_tools.errors import CometError
from cache_tools.text.languages import LANGUAGES, find_language, unlisted_note


def test_language_codes_and_their_synonyms() -> None:
    assert find_language("RW").code == find_language("kin").code == "kin"
    assert find_language("sw").name == "Swahili"
    assert find_language("lug").code == "lug" and find_language("lug").corpora == ()
    for name, nearest in (("kinyarwanda", "kin"), ("Zulu", "zul"), ("klingon", "kin")):
        with pytest.raises(
            CometError, match=rf"--lang '{name}' is not a language code: expected ISO 639-3, such as {nearest} \("
        ):
            find_language(name)


def test_a_code_outside_the_list_is_doubted() -> None:
    assert unlisted_note("hau") is None and unlisted_note("sw") is None
    taken = "not among the languages of `comet-cache languages`, taken as it is"
    assert unlisted_note("hua") == f"--lang hua: {taken}; did you mean hau (Hausa)?"
    assert unlisted_note("qqq") == f"--lang qqq: {taken}"


def test_every_code_of_a_language_means_that_one_alone() -> None:
    codes = [code for language in LANGUAGES for code in (language.code, *language.synonyms)]
    assert len(codes) == len(set(codes))
    assert all(
        find_language(code.upper()).code == language.code for language in LANGUAGES for code in language.synonyms
    )
    assert [language.code for language in LANGUAGES[:5]] == ["kin", "swa", "hau", "ibo", "yor"]
