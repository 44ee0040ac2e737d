"""A detached cache whose tokenizer never comes to an end on the text of whoever attaches it."""

from pathlib import Path

import running
from forging import TOKENIZER, change_detached, change_sealed

AGAINST = f"attach --text {Path(__file__).parents[2] / 'cache_tools/sample/text.txt'}"
REFUSED = "a regular expression that may take for ever"


def attack(cache: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    change_sealed(cache, TOKENIZER, lambda state: state.update(pre_tokenizer=split))
    change_detached(cache)


if __name__ == "__main__":
    running.alone()
