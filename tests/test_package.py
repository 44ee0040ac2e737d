"""What people install: both archives hold what it takes, and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from helpers import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version

PACKAGES = ("cache_tools", "comet")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Names of the files in the source archive, without its folder, and in the wheel, which is built from it."""
    source, built = tmp_path_factory.mktemp("source") / "comet", tmp_path_factory.mktemp("built")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(REPOSITORY / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(built), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    return inside, zipfile.ZipFile(next(built.glob("*.whl"))).namelist()


def of_packages() -> set[str]:
    """Every file of the packages that is not a left-over."""
    files = {path for name in PACKAGES for path in (REPOSITORY / name).rglob("*") if path.is_file()}
    return {path.relative_to(REPOSITORY).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_packages_and_nothing_else(archives: tuple[list[str], list[str]]) -> None:
    _, wheel = archives
    assert {name for name in wheel if ".dist-info/" not in name} == of_packages()
    assert [name for name in wheel if name.endswith("/LICENSE")]


def test_the_source_holds_what_the_wheel_is_built_from(archives: tuple[list[str], list[str]]) -> None:
    source, _ = archives
    left = {name for name in source if ".egg-info/" not in name} - of_packages()
    assert left == {*BESIDE, "PKG-INFO", "setup.cfg"}
    assert of_packages() <= set(source)


def bounds(lines: list[str], operator: str) -> dict[str, Version]:
    """The version that each requirement names with an operator. Fails for one that names none."""
    needed = [Requirement(line) for line in lines]
    found = {one.name: Version(part.version) for one in needed for part in one.specifier if part.operator == operator}
    assert found.keys() == {one.name for one in needed}
    return found


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" for line in lines]
    allowed = bounds(project["dependencies"] + extras, ">=")
    del allowed["torch"]
    lines = (REPOSITORY / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = bounds([line for line in lines if not line.startswith("#")], "==")
    assert {name: version for name, version in pinned.items() if name in allowed} == allowed
