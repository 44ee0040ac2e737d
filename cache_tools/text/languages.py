"""Languages by ISO 639-3 code: their names, other codes in use, and default corpora."""

from dataclasses import dataclass
from difflib import get_close_matches

from cache_tools.errors import CometError

WIKIPEDIA = "hf:wikimedia/wikipedia:20231101."
FINEWEB = "hf:HuggingFaceFW/fineweb-2:"  # of all languages but English


@dataclass(frozen=True)
class Language:
    """`code` is ISO 639-3 (or its macrolanguage); `synonyms` are other codes in use for it.

    `wikipedia` and `fineweb` are its codes in these two data sets, None where they do not have it.
    """

    code: str
    name: str
    synonyms: tuple[str, ...] = ()
    wikipedia: str | None = None
    fineweb: str | None = None

    @property
    def corpora(self) -> tuple[str, ...]:
        """The default of `--text`: the encyclopedia first, which is smaller."""
        return tuple(name + code for name, code in ((WIKIPEDIA, self.wikipedia), (FINEWEB, self.fineweb)) if code)


LANGUAGES = (  # those that AfroXLMR was adapted to, the paper's five first
    Language("kin", "Kinyarwanda", ("rw",), "rw", "kin_Latn"),
    Language("swa", "Swahili", ("sw", "swh"), "sw", "swh_Latn"),
    Language("hau", "Hausa", ("ha",), "ha", "hau_Latn"),
    Language("ibo", "Igbo", ("ig",), "ig", "ibo_Latn"),
    Language("yor", "Yoruba", ("yo",), "yo", "yor_Latn"),
    Language("afr", "Afrikaans", ("af",), "af", "afr_Latn"),
    Language("amh", "Amharic", ("am",), "am", "amh_Ethi"),
    Language("mlg", "Malagasy", ("mg", "plt"), "mg", "plt_Latn"),
    Language("nya", "Chichewa", ("ny",), "ny", "nya_Latn"),
    Language("orm", "Oromo", ("om", "gaz"), "om", "gaz_Latn"),
    Language("pcm", "Nigerian Pidgin", (), "pcm", "pcm_Latn"),
    Language("run", "Kirundi", ("rn",), "rn", "run_Latn"),
    Language("sna", "Shona", ("sn",), "sn", "sna_Latn"),
    Language("som", "Somali", ("so",), "so", "som_Latn"),
    Language("sot", "Sesotho", ("st",), "st", "sot_Latn"),
    Language("xho", "isiXhosa", ("xh",), "xh", "xho_Latn"),
    Language("zul", "isiZulu", ("zu",), "zu", "zul_Latn"),
    Language("ara", "Arabic", ("ar", "arb"), "ar", "arb_Arab"),
    Language("eng", "English", ("en",), "en", None),
    Language("fra", "French", ("fr", "fre"), "fr", "fra_Latn"),
)


def find_language(code: str) -> Language:
    """Return the language of a code; a code outside the list is taken as it is, if it can be an ISO 639-3 code.

    Raises CometError, with the code of the nearest name, for anything but two or three ASCII letters.
    """
    lowered = code.lower()
    for known in LANGUAGES:
        if lowered == known.code or lowered in known.synonyms:
            return known
    if not (2 <= len(lowered) <= 3 and lowered.isascii() and lowered.isalpha()):
        by_name = {known.name.lower(): known for known in LANGUAGES}
        nearest = by_name[(get_close_matches(lowered, by_name, n=1) or ["kinyarwanda"])[0]]
        raise CometError(
            f"--lang {code!r} is not a language code: expected ISO 639-3, such as {nearest.code} ({nearest.name}); "
            "`comet-cache languages` lists those with a default corpus, any other works with --text",
            exit_code=2,
        )
    return Language(lowered, lowered)


def unlisted_note(code: str) -> str | None:
    """Return a line about a code that is not in the list, with the nearest one; None for a listed code."""
    codes = [one for known in LANGUAGES for one in (known.code, *known.synonyms)]
    if code in codes:
        return None
    nearest = [find_language(one) for one in get_close_matches(code, codes, n=1)]
    hint = f"; did you mean {nearest[0].code} ({nearest[0].name})?" if nearest else ""
    return f"--lang {code}: not among the languages of `comet-cache languages`, taken as it is{hint}"


def language_table() -> str:
    """Return all languages with their default corpora as text of 80 columns."""
    rows = [("code", "name", "also", "Wikipedia", "FineWeb-2")]
    rows += [(x.code, x.name, " ".join(x.synonyms), x.wikipedia or "–", x.fineweb or "–") for x in LANGUAGES]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    example = LANGUAGES[0]
    return "\n".join((
        *lines,
        "",
        f"Without --text, `comet-cache build --lang {example.code}` reads, as far as --max-tokens goes,",
        *(f"  {corpus}" for corpus in example.corpora),
        "from the hub. Any other language works with its ISO 639-3 code and --text.",
    ))  # fmt: skip
