"""What a model comes from goes on to what is made of it."""

from pathlib import Path

import pytest

from comet.report.origin import MOST_CHARACTERS, Origin, origin_of

NOTHING = Origin([], None, None, "")


def written(folder: Path, content: str) -> Path:
    (folder / "README.md").write_text(content, encoding="utf-8")
    return folder


def test_it_is_that_of_the_card(tmp_path: Path) -> None:
    front = "---\nlanguage: kin\nlicense: cc-by-nc-4.0\nbase_model: lab/teacher\n---\n"
    found = origin_of(written(tmp_path, f"{front}# A student\n\nOf \x1b[31mtext\n"))
    assert found == Origin(["kin"], "cc-by-nc-4.0", "lab/teacher", "# A student\n\nOf [31mtext")
    assert origin_of(written(tmp_path, "---\nlanguage: [swa, hau]\n---\nA\n")) == Origin(
        ["swa", "hau"], None, None, "A"
    )


@pytest.mark.parametrize("content", [None, "---\n[\n---\ntext", "---\n- a\n---\ntext", "x" * (MOST_CHARACTERS + 1)])
def test_without_a_card_that_can_be_read_it_is_nothing(content: str | None, tmp_path: Path) -> None:
    assert origin_of(tmp_path if content is None else written(tmp_path, content)) == NOTHING
