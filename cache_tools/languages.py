"""Languages by ISO 639-3 code: what people call them, and which other codes mean the same."""

from dataclasses import dataclass

from cache_tools.errors import CometError


@dataclass(frozen=True)
class Language:
    """`code` is ISO 639-3 (or its macrolanguage); `synonyms` are other codes in use for it."""

    code: str
    name: str
    synonyms: tuple[str, ...] = ()


LANGUAGES = (
    Language("kin", "Kinyarwanda", ("rw",)),
    Language("swa", "Swahili", ("sw", "swh")),
    Language("hau", "Hausa", ("ha",)),
    Language("ibo", "Igbo", ("ig",)),
    Language("yor", "Yoruba", ("yo",)),
)


def find_language(code: str) -> Language:
    """The language of `code`; a code that is not in the list is taken as it is, if it can be an ISO 639-3 code.

    Raises CometError for anything that is not two or three ASCII letters.
    """
    lowered = code.lower()
    for language in LANGUAGES:
        if lowered == language.code or lowered in language.synonyms:
            return language
    if not (2 <= len(lowered) <= 3 and lowered.isascii() and lowered.isalpha()):
        known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES)
        raise CometError(
            f"--lang {code!r} is not a language code: expected ISO 639-3, such as {known}, or any other with --text",
            exit_code=2,
        )
    return Language(lowered, lowered)
