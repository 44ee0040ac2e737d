"""The Python of a page, run as its reader would: `python -m helpers.python_of_pages PAGE`, in the current folder."""

import json
import re
import sys
from pathlib import Path


def python_of(page: Path) -> list[str]:
    """The code cells of a notebook, or the Python blocks of any other page, in their order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(page: Path) -> None:
    """All of it in one namespace; a traceback names the block, the first being 1."""
    namespace = {"__name__": "__main__"}
    for number, code in enumerate(python_of(page), 1):
        exec(compile(code, f"<{page.name}, block {number}>", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
