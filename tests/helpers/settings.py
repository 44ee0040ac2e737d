"""Settings of builds that take seconds."""

from pathlib import Path
from typing import Any

from cache_tools.settings import BuildSettings

SMALL: dict[str, Any] = {
    "max_tokens": 1500, "seq_len": 48, "views": 1, "rows_per_shard": 16, "top_k": 8, "attention_keys": 6,
    "weak_teacher": True,  # many are of random weights
}  # fmt: skip


def build_settings(out: Path, teacher: Path, *text: Path, **changes: Any) -> BuildSettings:
    """A small Kinyarwanda cache from these files of text, computed on the CPU."""
    return BuildSettings(out, "kin", str(teacher), tuple(map(str, text)), **SMALL | {"device": "cpu"} | changes)
