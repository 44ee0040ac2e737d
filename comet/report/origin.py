"""Read the origin of a model from the card in its folder, for the cards of models derived from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

MOST_CHARACTERS = 2**16


@dataclass(frozen=True)
class Origin:
    """The languages, licence and base model of a card, by its metadata, and its text; empty where it has none."""

    languages: list[str]
    license: str | None
    base_model: str | None
    text: str


def origin_of(folder: Path) -> Origin:
    """Return what README.md in a model's folder says; without one, or if it is longer than MOST_CHARACTERS, nothing."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            content = file.read(MOST_CHARACTERS + 1)
        card = ModelCard(content if len(content) <= MOST_CHARACTERS else "", ignore_metadata_errors=True)
        metadata = card.data.to_dict()
    except Exception:  # no such file, or metadata that is not YAML, for which the parser raises anything
        return Origin([], None, None, "")
    text = "".join(character for character in card.text if character.isprintable() or character == "\n")
    languages = metadata.get("language") or []
    return Origin(
        [str(code) for code in (languages if isinstance(languages, list) else [languages])],
        _name(metadata.get("license")),
        _name(metadata.get("base_model")),
        text.strip(),
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None
