"""What cannot be had from the hub is one clear line that says what to do, in bounded time, and leaves nothing."""

import json
from pathlib import Path

import pytest
from helpers.hub_clients import Clients, Ended
from helpers.hub_data import card, parquet
from helpers.hub_server import Fault, Hub, Request

from cache_tools import open_cache

SAMPLE = ["build", "--lang", "kin", "--sample", "--views", "1", "--batch-size", "8", "--max-tokens", "400"]
LONGEST = 60.0  # seconds; time-outs are one second here, ten else
TOKEN = "with your token: `hf auth login`, or the variable HF_TOKEN"
TEXT_WAY_OUT = "give --text FILE_OR_FOLDER"
SLOW = "does not answer within 1 s; try again later, set HF_HUB_DOWNLOAD_TIMEOUT=60 where the network is slow, or"


def assert_one_line(ended: Ended, folder: Path, code: int, message: str) -> None:
    assert ended.stderr == f"error: {message}\n", ended
    assert ended.code == code
    assert ended.seconds < LONGEST
    assert {path.name for path in folder.iterdir()} <= {"stdout", "stderr"}


def run_text(clients: Clients, text: str, folder: Path) -> Ended:
    return clients.run("cache_tools", [*SAMPLE, "--text", text], folder)


def run_teacher(clients: Clients, teacher: str, folder: Path) -> Ended:
    return clients.run("cache_tools", [*SAMPLE, "--teacher", teacher], folder)


def test_nobody_answers(hub: Hub, clients: Clients, tmp_path: Path) -> None:
    reason = f"the hub cannot be reached at {hub.endpoint} (ConnectError); try again when the network is up, or"
    with hub.away():
        ended = clients.run("cache_tools", ["build", "--lang", "hau"], tmp_path)
        assert_one_line(ended, tmp_path, 1, f"--text hf:wikimedia/wikipedia:20231101.ha: {reason} {TEXT_WAY_OUT}")
        ended = run_teacher(clients, "lab/unheard", tmp_path)
        assert_one_line(ended, tmp_path, 1, f"teacher lab/unheard: {reason} give --teacher FOLDER")


@pytest.mark.slow
def test_nobody_answers_but_the_teacher_is_in_the_cache(
    hub: Hub, clients: Clients, sample_teacher: Path, tmp_path: Path
) -> None:
    commit = hub.add("lab/known", {path.name: path.read_bytes() for path in sample_teacher.iterdir()})
    assert run_teacher(clients, "lab/known", tmp_path).code == 0
    first = (tmp_path / "kin.zarr").rename(tmp_path / "first.zarr")
    with hub.away():
        ended = run_teacher(clients, "lab/known", tmp_path)
        call = ["verify", "kin.zarr", "--teacher", "lab/known", "--rows", "4", "--json"]
        checked = clients.run("cache_tools", call, tmp_path)
    note = f"teacher lab/known: the hub cannot be reached; using revision {commit} from its cache on this machine\n"
    assert note in ended.stderr and note in checked.stderr
    assert json.loads(checked.stdout)["damage"] == []
    assert open_cache(tmp_path / "kin.zarr").cache_id == open_cache(first).cache_id


def test_the_server_stalls(hub: Hub, clients: Clients, tmp_path: Path) -> None:
    reason = f"the hub at {hub.endpoint} {SLOW}"
    with hub.failing(Request.stall):
        ended = run_text(clients, "hf:wikimedia/wikipedia:20231101.rw", tmp_path)
        assert_one_line(ended, tmp_path, 1, f"--text hf:wikimedia/wikipedia:20231101.rw: {reason} {TEXT_WAY_OUT}")
        ended = run_teacher(clients, "lab/unheard", tmp_path)
        assert_one_line(ended, tmp_path, 1, f"teacher lab/unheard: {reason} give --teacher FOLDER")


@pytest.mark.slow
def test_the_server_stalls_within_the_weights(hub: Hub, clients: Clients, sample_teacher: Path, tmp_path: Path) -> None:
    hub.add("lab/slow", {path.name: path.read_bytes() for path in sample_teacher.iterdir()})
    with hub.failing(lambda request: request.path.endswith("model.safetensors") and request.stall()):
        ended = run_teacher(clients, "lab/slow", tmp_path)
    assert_one_line(ended, tmp_path, 1, f"teacher lab/slow: the hub at {hub.endpoint} {SLOW} give --teacher FOLDER")
    assert run_teacher(clients, "lab/slow", tmp_path).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Request.stall, Request.hang_up])
def test_the_text_breaks_off_for_good(
    fault: Fault, hub: Hub, clients: Clients, lines: list[str], tmp_path: Path
) -> None:
    reasons = {
        Request.stall: f"the hub at {hub.endpoint} {SLOW}",
        Request.hang_up: f"the hub cannot be reached at {hub.endpoint} (RemoteProtocolError); try again when the "
        "network is up, or",
    }
    hub.add("datasets/lab/breaks", {"a.parquet": parquet(lines[:90]), "b.parquet": parquet(lines[90:])})
    with hub.failing(lambda request: request.path.endswith("b.parquet") and fault(request)):
        ended = run_text(clients, "hf:lab/breaks", tmp_path)
    assert_one_line(ended, tmp_path, 1, f"--text hf:lab/breaks: {reasons[fault]} {TEXT_WAY_OUT}")


@pytest.mark.slow
def test_the_text_breaks_off_for_a_while(hub: Hub, clients: Clients, lines: list[str], tmp_path: Path) -> None:
    hub.add("datasets/lab/recovers", {"a.parquet": parquet(lines[:90]), "b.parquet": parquet(lines[90:])})
    command = [*SAMPLE[:-2], "--text", "hf:lab/recovers", "--out"]
    assert clients.run("cache_tools", [*command, "whole.zarr"], tmp_path).code == 0
    broken: list[str] = []

    def fault(request: Request) -> bool:
        fails = request.path.endswith(".parquet") and len(broken) < 4
        broken.extend([request.path] * fails)
        return fails and (request.hang_up() if len(broken) % 2 else request.stall())

    with hub.failing(fault):
        ended = clients.run("cache_tools", [*command, "kin.zarr"], tmp_path)
    assert (ended.code, ended.stderr, len(broken)) == (0, "", 4)
    assert open_cache(tmp_path / "kin.zarr").cache_id == open_cache(tmp_path / "whole.zarr").cache_id


def test_the_hub_has_troubles_of_its_own(hub: Hub, clients: Clients, tmp_path: Path) -> None:
    with hub.failing(lambda request: request.refuse(503, "") or True):
        ended = run_text(clients, "hf:wikimedia/wikipedia:20231101.rw", tmp_path)
    reason = f"the hub at {hub.endpoint} answers 503; try again later, or {TEXT_WAY_OUT}"
    assert_one_line(ended, tmp_path, 1, f"--text hf:wikimedia/wikipedia:20231101.rw: {reason}")


ONE = parquet(["Umunsi mwiza"])
SCRIPT = b"open('sprung', 'w').close()\n"
TEXTS = {
    "missing": (None, 1, f"not found on the hub; check the name, or for a private one run again {TOKEN}"),
    "script": (
        {"script.py": SCRIPT, "README.md": b""},
        2,
        "it has a loading script, which is never run; look for a data set of the same text in Parquet, or download it "
        f"and {TEXT_WAY_OUT}",
    ),
    "empty": (
        {"README.md": b"# Soon"},
        2,
        f"it has no files that can be read as rows of text; download it and {TEXT_WAY_OUT}",
    ),
    "column": ({"a.parquet": parquet(["a"], "sentence")}, 1, None),
    "null": ({"a.parquet": parquet(["a", None])}, 1, None),
    "damaged": ({"a.parquet": parquet(["a", "b"])[:-30]}, 1, 
        "cannot be read (Parquet magic bytes not found in footer. "
        f"Either the file is corrupted or this is not a parquet file.); download it and {TEXT_WAY_OUT}"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_a_data_set_that_cannot_be_used(name: str, hub: Hub, clients: Clients, tmp_path: Path) -> None:
    content, code, message = TEXTS[name]
    if content is not None:
        hub.add(f"datasets/lab/{name}", content)
    ended = run_text(clients, f"hf:lab/{name}", tmp_path)
    expected = {
        "column": "hf:lab/column row 1: expected a string column \"text\", found ['id', 'sentence']",
        "null": "hf:lab/null row 2: expected a string column \"text\", found ['id', 'text']",
    }
    assert_one_line(ended, tmp_path, code, f"--text {expected.get(name, f'hf:lab/{name}: {message}')}")


@pytest.mark.slow
def test_a_part_that_there_is_not_and_a_part_that_was_not_named(hub: Hub, clients: Clients, tmp_path: Path) -> None:
    parts = {name: {"train": f"{name}/*"} for name in ("kin_Latn", "run_Latn", "swh_Latn")}
    hub.add("datasets/lab/parts", {"README.md": card("mit", parts)} | {f"{name}/a.parquet": ONE for name in parts})
    expected = "expected hf:lab/parts:CONFIG with one of"
    ended = run_text(clients, "hf:lab/parts:swa_Latn", tmp_path)
    message = f"--text hf:lab/parts:swa_Latn: it has no part 'swa_Latn'; {expected} swh_Latn, run_Latn, kin_Latn"
    assert_one_line(ended, tmp_path, 2, message)
    ended = run_text(clients, "hf:lab/parts", tmp_path)
    assert_one_line(
        ended, tmp_path, 2, f"--text hf:lab/parts: it has several parts; {expected} kin_Latn, run_Latn, swh_Latn"
    )
    hub.add("datasets/lab/dev", {"README.md": card("mit", {"kin": {"validation": "a.parquet"}}), "a.parquet": ONE})
    said = "Bad split: train. Available splits: ['validation']"
    message = f"--text hf:lab/dev:kin: it has no split 'train', the one that is read: {said}"
    assert_one_line(run_text(clients, "hf:lab/dev:kin", tmp_path), tmp_path, 2, message)


def test_gated_missing_and_moved_repositories(hub: Hub, clients: Clients, sample_teacher: Path, tmp_path: Path) -> None:
    teacher = {path.name: path.read_bytes() for path in sample_teacher.iterdir()}
    hub.add("datasets/lab/gated", {"README.md": b"", "a.parquet": ONE}, gated=True)
    hub.add("lab/gated", teacher, gated=True)
    hub.add("lab/weightless", {name: content for name, content in teacher.items() if "safetensors" not in name})
    gated = f"gated on the hub: request access on its page at {hub.endpoint}, then run again {TOKEN}"
    missing = f"not found on the hub; check the name, or for a private one run again {TOKEN}"
    assert_one_line(run_text(clients, "hf:lab/gated", tmp_path), tmp_path, 1, f"--text hf:lab/gated: {gated}")
    assert_one_line(run_teacher(clients, "lab/gated", tmp_path), tmp_path, 1, f"teacher lab/gated: {gated}")
    assert_one_line(run_teacher(clients, "lab/missing", tmp_path), tmp_path, 1, f"teacher lab/missing: {missing}")
    revision = "no such revision on the hub"
    ended = run_teacher(clients, "Davlan/afro-xlmr-large@v2", tmp_path)
    assert_one_line(ended, tmp_path, 1, f"teacher Davlan/afro-xlmr-large@v2: {revision}")
    ended = run_text(clients, "hf:wikimedia/wikipedia@v2:20231101.rw", tmp_path)
    assert_one_line(ended, tmp_path, 1, f"--text hf:wikimedia/wikipedia:20231101.rw: {revision}")
    ended = run_teacher(clients, "lab/weightless", tmp_path)
    assert ended.stderr.startswith("error: teacher lab/weightless@") and ended.stderr.count("\n") == 1
    assert "its model cannot be loaded; expected a folder or a name on the hub with config.json, a tok" in ended.stderr


def test_a_folder_of_the_same_name_is_not_taken_for_the_data_set(hub: Hub, clients: Clients, tmp_path: Path) -> None:
    (tmp_path / "wikimedia" / "wikipedia").mkdir(parents=True)
    ended = run_text(clients, "hf:wikimedia/wikipedia:20231101.rw", tmp_path)
    assert ended.stderr == (
        "error: --text hf:wikimedia/wikipedia:20231101.rw: a folder of that name exists here and would be read "
        "instead; run from another folder\n"
    )


@pytest.mark.slow
def test_without_network_by_choice(hub: Hub, clients: Clients, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """HF_HUB_OFFLINE with a cache of the hub that holds one teacher, which works, and another, which is not there."""
    assert run_teacher(clients, "Davlan/afro-xlmr-large", tmp_path).code == 0
    online = (tmp_path / "kin.zarr").rename(tmp_path / "online.zarr")
    hub.requests.clear()
    offline = Clients(hub.endpoint, clients.home, offline=True)
    request.addfinalizer(offline.close)
    ended = run_teacher(offline, "Davlan/afro-xlmr-large", tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert open_cache(tmp_path / "kin.zarr").cache_id == open_cache(online).cache_id
    (folder := tmp_path / "other").mkdir()
    reason = (
        "not in the hub's cache on this machine (HF_HOME), and HF_HUB_OFFLINE is set; unset it, copy the cache from a "
        "machine with network, or"
    )
    ended = run_teacher(offline, "lab/unheard", folder)
    assert_one_line(ended, folder, 1, f"teacher lab/unheard: {reason} give --teacher FOLDER")
    ended = run_text(offline, "hf:wikimedia/wikipedia:20231101.rw", folder)
    assert_one_line(ended, folder, 1, f"--text hf:wikimedia/wikipedia:20231101.rw: {reason} {TEXT_WAY_OUT}")
    assert hub.requests == []
