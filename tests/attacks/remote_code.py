"""A tokenizer that names code of its own, in a file beside it."""

from pathlib import Path

import running
from forging import TOKENIZER_CONFIG, change_sealed

AGAINST = "tokenizer"
REFUSED = "auto_map"


def attack(cache: Path) -> None:
    (cache / "tokenizer/evil.py").write_text(f"import os\nos.mkdir({str(cache.parent / 'marker')!r})\n")
    change_sealed(
        cache, TOKENIZER_CONFIG, lambda config: config.update(auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    )


if __name__ == "__main__":
    running.alone()
