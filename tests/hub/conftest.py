"""A hub with what a build without options asks for: the teacher, and the two corpora of Kinyarwanda."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub_clients import Clients
from helpers.hub_data import card, parquet
from helpers.hub_server import Hub

TEACHER = "Davlan/afro-xlmr-large"
WIKIPEDIA = "datasets/wikimedia/wikipedia"
FINEWEB = "datasets/HuggingFaceFW/fineweb-2"


@pytest.fixture(scope="session")
def lines(sample_text: Path) -> list[str]:
    """300 Kinyarwanda sentences: the first 60 are the encyclopedia here, the others the web."""
    return sample_text.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def hub(sample_teacher: Path, lines: list[str]) -> Iterator[Hub]:
    with Hub() as server:
        server.add(TEACHER, {path.name: path.read_bytes() for path in sample_teacher.iterdir()})
        wikipedia = {f"20231101.{code}": {"train": f"20231101.{code}/train-*"} for code in ("rw", "sw")}
        server.add(
            WIKIPEDIA,
            {
                "README.md": card("[cc-by-sa-3.0, gfdl]", wikipedia),
                "20231101.rw/train-00000-of-00001.parquet": parquet(lines[:60]),
                "20231101.sw/train-00000-of-00001.parquet": parquet(["Habari"]),
            },
        )
        fineweb = {code: {"train": f"data/{code}/train/*"} for code in ("kin_Latn", "swh_Latn")}
        server.add(
            FINEWEB,
            {
                "README.md": card("odc-by", fineweb),
                "data/kin_Latn/train/000_00000.parquet": parquet(lines[60:200]),
                "data/kin_Latn/train/001_00000.parquet": parquet(lines[200:]),
                "data/swh_Latn/train/000_00000.parquet": parquet(["Habari"]),
            },
        )
        yield server


@pytest.fixture(scope="session")
def clients(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    running = Clients(hub.endpoint, tmp_path_factory.mktemp("home"))
    yield running
    running.close()
