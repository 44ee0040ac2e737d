"""`comet-eval` with a model and data from the hub: the same numbers as from files, and one line when they are away."""

import json
from pathlib import Path

import pytest
from helpers.hub_clients import Clients, Ended
from helpers.hub_data import card
from helpers.hub_server import Hub

SPLITS = {"train": (0, 24), "validation": (24, 32), "test": (32, 44)}
QUICK = ["--seeds", "1", "--epochs", "1", "--device", "cpu"]
SOURCE = "https://github.com/dadelani/sib-200"


def table(lines: list[str], split: str) -> bytes:
    """SIB-200's format, two of its topics."""
    rows = [f"{i}\t{('sports', 'health')[i % 2]}\t{lines[i]}" for i in range(*SPLITS[split])]
    return "\n".join(["index_id\tcategory\ttext", *rows, ""]).encode()


@pytest.fixture(scope="module")
def topics(hub: Hub, lines: list[str]) -> dict[str, bytes]:
    """The files of the data set on the hub, with all of its languages that a test needs."""
    configs = {code: {split: f"data/{code}/{split}.tsv" for split in SPLITS} for code in ("kin_Latn", "yor_Latn")}
    files = {f"data/{code}/{split}.tsv": table(lines, split) for code in configs for split in SPLITS}
    hub.add("datasets/Davlan/sib200", files | {"README.md": card("cc-by-sa-4.0", configs)})
    return files


def evaluate(clients: Clients, folder: Path, model: str, *options: str, language: str = "kin") -> Ended:
    given = ["--model", model, "--task", "sib200", "--lang", language, *QUICK, *options]
    return clients.run("comet.cli.evaluate", given, folder)


def test_model_and_data_from_the_hub_give_what_files_give(
    hub: Hub, clients: Clients, topics: dict[str, bytes], sample_teacher: Path, tmp_path: Path
) -> None:
    ended = evaluate(clients, tmp_path, "Davlan/afro-xlmr-large")
    assert (ended.code, ended.stderr) == (0, ""), ended
    result = json.loads((tmp_path / "eval-sib200-kin.json").read_text(encoding="utf-8"))
    (tmp_path / "files").mkdir()
    for name, content in topics.items():
        if "kin_Latn" in name:
            split = Path(name).name.replace("validation", "dev")
            (tmp_path / "files" / split).write_bytes(content)
    local = evaluate(clients, tmp_path, str(sample_teacher), "--data", "files", "--results", "local.json")
    assert local.code == 0, local
    expected = json.loads((tmp_path / "local.json").read_text(encoding="utf-8"))
    assert result["subject"] == expected["subject"]
    (model,), (other,) = result["models"], expected["models"]
    assert model["name"] == "Davlan/afro-xlmr-large" and model["sha256"] == other["sha256"]
    assert [run["predictions"] for run in model["runs"]] == [run["predictions"] for run in other["runs"]]


def test_what_cannot_be_had_is_one_line(hub: Hub, clients: Clients, topics: dict[str, bytes], tmp_path: Path) -> None:
    data = f"download the original files from {SOURCE} and give --data FOLDER"
    ended = evaluate(clients, tmp_path, "lab/unheard", language="lug")
    expected = "error: --task sib200: Davlan/sib200 has no 'lug_Latn'; it has kin_Latn, yor_Latn\n"
    assert (ended.code, ended.stderr) == (2, expected)
    ended = evaluate(clients, tmp_path, "lab/unheard")
    expected = "error: --model lab/unheard (no such folder here): not found on the hub; check the name, or"
    assert ended.stderr.startswith(expected)
    assert (ended.code, ended.stderr.count("\n")) == (1, 1)
    with hub.away():
        ended = clients.run(
            "comet.cli.evaluate", ["--model", "m", "--task", "masakhanews", "--lang", "kin", *QUICK], tmp_path
        )
    reason = f"the hub cannot be reached at {hub.endpoint} (ConnectError); try again when the network is up, or"
    assert ended.stderr == (
        f"error: --task masakhanews: masakhane/masakhanews: {reason} "
        f"{data.replace('dadelani/sib-200', 'masakhane-io/masakhane-news')}\n"
    )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_without_the_hub_data_of_an_earlier_call_is_used(
    hub: Hub, clients: Clients, topics: dict[str, bytes], tmp_path: Path
) -> None:
    assert evaluate(clients, tmp_path, "Davlan/afro-xlmr-large").code == 0
    with hub.away():
        ended = evaluate(clients, tmp_path, "Davlan/afro-xlmr-large", "--results", "away.json")
    assert ended.code == 0, ended
    notes = [line.partition("the hub cannot be reached; ")[2] for line in ended.stderr.splitlines()]
    assert [note[:9] for note in notes] == ["using the", "using rev"]
    there, away = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("eval-sib200-kin", "away"))
    assert there["subject"] == away["subject"]


@pytest.mark.slow
def test_a_build_never_takes_an_older_copy_of_its_text(
    hub: Hub, clients: Clients, topics: dict[str, bytes], tmp_path: Path
) -> None:
    """`datasets` would read whatever version of the data set it finds in its cache when the hub is away."""
    assert evaluate(clients, tmp_path, "Davlan/afro-xlmr-large").code == 0
    commit = list(hub.repositories["datasets/Davlan/sib200"].commits)[-1]
    build = ["build", "--lang", "kin", "--sample", "--text", f"hf:Davlan/sib200@{commit}:kin_Latn"]
    with hub.away():
        ended = clients.run("cache_tools", build, tmp_path)
    assert ended.stderr.startswith("error: --text hf:Davlan/sib200:kin_Latn: the hub cannot be reached at http://127.0")
    assert (ended.code, ended.stderr.count("\n")) == (1, 1) and not (tmp_path / "kin.zarr").exists()
