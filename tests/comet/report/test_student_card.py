"""The metadata of a student's card say no more than is known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comet.report.card import card_metadata
from comet.report.examples import example_comment

HUB = {"teacher": "Davlan/afro-xlmr-large", "teacher_revision": "0" * 40, "language": "kin", "teacher_licence": "mit"}


def metadata(has_layers: bool = True, **changes: Any) -> dict[str, Any]:
    cache: Any = SimpleNamespace(provenance=HUB | changes, name=Path("kin.zarr"))
    return card_metadata([cache], has_layers).to_dict()


def test_a_teacher_on_the_hub_is_the_base_model() -> None:
    assert metadata()["base_model"] == "Davlan/afro-xlmr-large"
    assert "base_model" not in metadata(teacher_revision=None)
    assert "base_model" not in metadata(teacher="bert-base-cased")


@pytest.mark.parametrize(("licence", "expected"), [("mit", "mit"), ("cc-by-nc-4.0, gated", "cc-by-nc-4.0")])
def test_a_student_of_its_layers_is_under_the_teacher_s_licence(licence: str, expected: str) -> None:
    assert metadata(teacher_licence=licence)["license"] == expected
    assert "license" not in metadata(has_layers=False, teacher_licence=licence)


@pytest.mark.parametrize("licence", [None, "licence not stated", "mit, apache-2.0", "other", "A licence of my own"])
def test_a_licence_that_the_hub_has_no_name_for_is_left_out(licence: str | None) -> None:
    assert "license" not in metadata(teacher_licence=licence)


def test_examples_in_another_language_are_said_to_be_kinyarwanda() -> None:
    assert example_comment(["swa", "kin"]) == example_comment(["rw"]) == ""
    for languages in (["swa"], []):
        assert example_comment(languages) == "  # Kinyarwanda: put text in the model's own language here"
