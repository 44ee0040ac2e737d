"""The names of students' sizes, without torch, so that a mistyped one is refused before torch is loaded."""

import os
from difflib import get_close_matches

from cache_tools.errors import CometError

AUTO = "auto"
PAPER = "comet"  # the paper's shape
SMALLER = {"small": 0.85, "tiny": 0.90, "nano": 0.95}
"""How much smaller than the teacher a student of this name is."""
DEFAULT_SIZE = "small"
SHAPE_FIELDS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
"""The fields of a shape in a JSON file."""


def require_size(requested: str) -> None:
    """Raise CometError unless this is the name of a size or of a file."""
    # unlike Path.is_file, isfile is also False for a name that no disk takes
    if requested not in (AUTO, PAPER, *SMALLER) and not os.path.isfile(requested):
        expected = f"auto, {', '.join((PAPER, *SMALLER))}, or a JSON file with {', '.join(SHAPE_FIELDS)}"
        nearest = get_close_matches(requested, (AUTO, PAPER, *SMALLER), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise CometError(f"--student {requested}: expected {expected}{hint}", exit_code=2)
