"""A comment for the example sentences in model cards, which are Kinyarwanda."""

from collections.abc import Collection

KINYARWANDA = {"kin", "rw"}  # its codes


def example_comment(languages: Collection[str]) -> str:
    """Return a comment on the examples in the card of a model of these languages, nothing if one is theirs."""
    return "" if KINYARWANDA & set(languages) else "  # Kinyarwanda: put text in the model's own language here"
