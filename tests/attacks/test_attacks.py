"""Every hostile cache is refused in one line, at little cost, and does nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ATTACKS, TABLES, Outcome, Warm, faults, hostile_cache, warm_process

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return kind, size and time of the last change of everything under a folder, following no link."""
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path in folder.rglob("*") for s in [path.lstat()]}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm_process(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="module")
def ordinary(warm: Warm) -> dict[str, Outcome]:
    """Run each command on a sound cache."""
    commands = sorted({attack.against for attack in ATTACKS.values()})
    return {command: warm.run(command, warm.sound) for command in commands}


def test_a_sound_cache_is_taken(ordinary: dict[str, Outcome]) -> None:
    """So that what is refused below is refused for the attack."""
    for command, outcome in ordinary.items():
        assert (outcome.code, outcome.stderr, outcome.forbidden) == (0, "", []), command


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails(name: str, warm: Warm, ordinary: dict[str, Outcome], tmp_path: Path) -> None:
    attack = ATTACKS[name]
    cache = hostile_cache(attack, tmp_path)
    around = files_of(tmp_path)
    outcome = warm.run(attack.against, cache)
    assert faults(attack, outcome, ordinary[attack.against]) == []
    assert files_of(tmp_path) == around


def test_every_attack_names_its_threat() -> None:
    assert len(ATTACKS) == sum(map(len, TABLES)) >= 166  # no name is used twice
    assert all(bool(attack.refused) != bool(attack.shown) for attack in ATTACKS.values())
    threats = [attack.threat for attack in ATTACKS.values()]
    assert all(threat.count("\n") == 0 and len(threat) > 10 for threat in threats)
    assert len(set(threats)) == len(threats)


def test_every_promise_names_tests_that_exist() -> None:
    """SECURITY.md."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) >= 15
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
