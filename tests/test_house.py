"""Which folder may import which, how many modules it may have, where signals live, and that no test is left out."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
from helpers import REPOSITORY

MODULES = [
    path.relative_to(REPOSITORY) for name in ("cache_tools", "comet") for path in (REPOSITORY / name).rglob("*.py")
]
TOP = ""  # the modules that lie in the package itself
ORDER = {
    "cache_tools": (TOP, "store", "text", "teacher", "sharing", "build", "verify", "cli"),
    "comet": ("student", "train", "recipes", "settings", "report", TOP, "cli"),
}
FORBIDDEN = {
    "cache_tools": {"comet"},
    "comet": {"cache_tools.teacher", "cache_tools.build", "cache_tools.verify"},
    "comet.evaluate": {"comet.train", "comet.cli"},
    "comet.export": {"comet.train", "comet.cli"},
}
HOMES_OF_SIGNALS = ("cache_tools/signals.py", "cache_tools/teacher/", "comet/train/signals.py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported at any depth, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node)


def place_of(name: str) -> tuple[str, str]:
    """Package and folder of an imported name."""
    package, _, rest = name.partition(".")
    folder = rest.partition(".")[0]
    return package, folder if folder in ORDER.get(package, ()) or f"{package}.{folder}" in FORBIDDEN else TOP


def breaks_the_order(importer: tuple[str, str], imported: tuple[str, str]) -> bool:
    (package, folder), order = importer, ORDER[importer[0]]
    if {imported[0], ".".join(imported)} & (FORBIDDEN[package] | FORBIDDEN.get(f"{package}.{folder}", set())):
        return True
    if imported[0] != package or not {folder, imported[1]} <= set(order):
        return False
    return order.index(imported[1]) > order.index(folder)


def test_imports_go_to_folders_before() -> None:
    found = {
        (path.as_posix(), name)
        for path in MODULES
        if path.name not in ("__init__.py", "__main__.py") or len(path.parts) > 2
        for name in imports(ast.parse((REPOSITORY / path).read_text(encoding="utf-8")))
        if breaks_the_order(place_of(".".join(path.with_suffix("").parts)), place_of(name))
    }
    assert not found


def test_no_folder_has_more_than_twelve_modules() -> None:
    counts = Counter(path.parent.as_posix() for path in MODULES if not path.stem.startswith("__"))
    assert not {folder: count for folder, count in counts.items() if count > 12}


def test_the_kept_logits_are_told_apart_only_where_signals_live() -> None:
    others = [path for path in MODULES if not path.as_posix().startswith(HOMES_OF_SIGNALS)]
    assert not [
        p.as_posix() for p in others if re.search(r"\bkeep [=!]= ", (REPOSITORY / p).read_text(encoding="utf-8"))
    ]


def test_progress_is_shown_by_one_function() -> None:
    """A bar of another's making is silent in a log."""
    texts = {path.as_posix(): (REPOSITORY / path).read_text(encoding="utf-8") for path in MODULES}
    assert [path for path, text in texts.items() if re.search(r"\btqdm\(", text)] == ["cache_tools/progress.py"]


def test_pytest_enters_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    folders = {path.parent for path in (REPOSITORY / "tests").rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(REPOSITORY).parts}
    assert "build" in names  # a name that pytest leaves out by default
    assert not [(name, p) for name in names for p in pytestconfig.getini("norecursedirs") if fnmatch(name, p)]
