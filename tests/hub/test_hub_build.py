"""`comet-cache build` from the hub: the default path, through the real clients, at one commit, and on from there."""

import json
from pathlib import Path

import pytest
from helpers.hub_clients import Clients, Ended
from helpers.hub_data import parquet
from helpers.hub_server import Hub

from cache_tools import build_cache, open_cache
from cache_tools.settings import BuildSettings
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.writer import drop_shard
from cache_tools.teacher.model import load_teacher


def done(ended: Ended) -> Ended:
    assert (ended.code, ended.stderr) == (0, ""), ended
    return ended


def recipe_of(texts: list[str], teacher: Path, folder: Path) -> str:
    """The recipe id of a cache of these texts, from a file, and a teacher's folder."""
    (folder / "local.txt").write_text("\n".join(texts), encoding="utf-8")
    settings = BuildSettings(folder / "local.zarr", "kin", str(teacher), (str(folder / "local.txt"),))
    return build_cache(settings).recipe.recipe_id


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_build_without_options(
    hub: Hub, clients: Clients, lines: list[str], sample_teacher: Path, tmp_path: Path
) -> None:
    ended = done(clients.run("cache_tools", ["build", "--lang", "rw"], tmp_path))
    commits = {name: list(repository.commits)[-1] for name, repository in hub.repositories.items()}
    wikipedia, fineweb = commits["datasets/wikimedia/wikipedia"], commits["datasets/HuggingFaceFW/fineweb-2"]
    assert ended.stdout.splitlines()[:2] == [
        f"text: hf:wikimedia/wikipedia:20231101.rw ({wikipedia[:7]}; cc-by-sa-3.0, gfdl), "
        f"hf:HuggingFaceFW/fineweb-2:kin_Latn ({fineweb[:7]}; odc-by); "
        "the first 50,000,000 tokens of it (--max-tokens)",
        f"teacher: Davlan/afro-xlmr-large ({commits['Davlan/afro-xlmr-large'][:7]}; cc-by-4.0)",
    ]
    cache = open_cache(tmp_path / "kin.zarr")
    assert cache.recipe.recipe_id == recipe_of(lines, sample_teacher, tmp_path)
    made_from = cache.provenance
    tokens = [text.pop("tokens") for text in made_from["text"]]
    assert all(tokens) and sum(tokens) < 50_000_000
    assert made_from["text"] == [
        {"name": "hf:wikimedia/wikipedia:20231101.rw", "revision": wikipedia, "licence": "cc-by-sa-3.0, gfdl"},
        {"name": "hf:HuggingFaceFW/fineweb-2:kin_Latn", "revision": fineweb, "licence": "odc-by"},
    ]
    assert made_from["teacher"] == "Davlan/afro-xlmr-large"
    assert made_from["teacher_revision"] == commits["Davlan/afro-xlmr-large"]
    assert made_from["teacher_licence"] == "cc-by-4.0"
    assert made_from["max_tokens"] == 50_000_000
    facts = json.loads(done(clients.run("cache_tools", ["info", "kin.zarr", "--json"], tmp_path)).stdout)
    assert facts["text_revision"] == f"{wikipedia}, {fineweb}" and facts["text_licence"] == "cc-by-sa-3.0, gfdl, odc-by"
    assert facts["teacher_revision"] == commits["Davlan/afro-xlmr-large"] and facts["teacher_licence"] == "cc-by-4.0"


@pytest.mark.slow
def test_a_build_resumes_at_its_commits_after_the_hub_moved_on(
    hub: Hub, clients: Clients, lines: list[str], sample_teacher: Path, tmp_path: Path
) -> None:
    teacher = files(sample_teacher)
    first = hub.add("lab/teacher", teacher)
    hub.add("datasets/lab/moving", {"a.parquet": parquet(lines[:50]), "b.parquet": parquet(lines[50:99])})
    command = ["build", "--lang", "kin", "--teacher", "lab/teacher", "--text", "hf:lab/moving", "--rows-per-shard", "4"]
    stdout = done(clients.run("cache_tools", command, tmp_path)).stdout
    assert "hf:lab/moving (" in stdout and "; licence not stated); the first 50,000,000 tokens" in stdout
    whole = files(tmp_path / "kin.zarr")

    second = hub.add("lab/teacher", teacher | {"README.md": b"moved"})
    hub.add("datasets/lab/moving", {"a.parquet": parquet(lines[100:])})
    cache = open_cache(tmp_path / "kin.zarr")
    drop_shard(cache, "train", 1)
    for name in TOKEN_ARRAYS:
        (cache.root / cache.specs["train"][name].chunk_path(1)).unlink()
    stdout = done(clients.run("cache_tools", command, tmp_path)).stdout
    assert stdout.startswith("tokens missing in 1 of ")
    assert files(tmp_path / "kin.zarr") == whole

    done(clients.run("cache_tools", [*command, "--out", "new.zarr"], tmp_path))
    new = open_cache(tmp_path / "new.zarr")
    assert new.provenance["teacher_revision"] == second
    assert new.recipe.tokens_sha256 != cache.recipe.tokens_sha256
    command[command.index("lab/teacher")] = f"lab/teacher@{first}"
    old = str(cache.provenance["text"][0]["revision"])
    command[command.index("hf:lab/moving")] = f"hf:lab/moving@{old}"
    done(clients.run("cache_tools", [*command, "--out", "old.zarr"], tmp_path))
    assert files(tmp_path / "old.zarr") == whole


def test_a_text_of_the_hub_is_attached_at_its_commit(
    hub: Hub, clients: Clients, lines: list[str], tmp_path: Path
) -> None:
    first = hub.add("datasets/lab/attached", {"a.parquet": parquet(lines[:150])})
    command = ["build", "--lang", "kin", "--sample", "--text", "hf:lab/attached", "--max-tokens", "900", "--views", "2"]
    done(clients.run("cache_tools", command, tmp_path))
    second = hub.add("datasets/lab/attached", {"a.parquet": parquet(lines[150:])})
    pushed = done(clients.run("cache_tools", ["push", "kin.zarr", "there", "--detach-text"], tmp_path)).stdout
    assert "\nno text is copied; that of hf:lab/attached (licence not stated) stays here. " in pushed
    call = ["attach", "there", "--text"]
    refused = clients.run("cache_tools", [*call, f"hf:lab/attached@{second}"], tmp_path)
    assert refused.code == 1 and "is the first that differs; here it begins" in refused.stderr
    assert "; hf:lab/attached: revision differs from the one the cache was made from" in refused.stderr
    done(clients.run("cache_tools", [*call, "hf:lab/attached"], tmp_path))
    cache = open_cache(tmp_path / "there")
    assert cache.provenance["text"][0]["revision"] == first
    assert cache.cache_id == open_cache(tmp_path / "kin.zarr").cache_id


def test_reading_stops_with_the_tokens(hub: Hub, clients: Clients, lines: list[str], tmp_path: Path) -> None:
    hub.add("datasets/lab/long", {"a.parquet": parquet(lines * 4), "b.parquet": parquet(["never read"])})
    command = ["build", "--lang", "kin", "--sample", "--text", "hf:lab/long", "--max-tokens", "900", "--views", "1"]
    stdout = done(clients.run("cache_tools", command, tmp_path)).stdout
    assert "; the first 900 tokens of it (--max-tokens)" in stdout
    read = {request.rsplit("/", 1)[1] for request in hub.requests if "lab/long/resolve" in request}
    assert "a.parquet" in read and "b.parquet" not in read
    made_from = open_cache(tmp_path / "kin.zarr").provenance
    assert 900 <= made_from["text_tokens"] < 950 and made_from["documents"] < 300


def test_the_dry_run_reads_from_the_hub_and_leaves_nothing(clients: Clients, tmp_path: Path) -> None:
    command = ["build", "--lang", "kin", "--dry-run", "--max-tokens", "500"]
    stdout = done(clients.run("cache_tools", command, tmp_path)).stdout
    assert "\ndry run, nothing kept: " in stdout
    assert {path.name for path in tmp_path.iterdir()} == {"stdout", "stderr"}


@pytest.mark.slow
def test_pickled_weights_are_taken_only_without_safetensors(
    hub: Hub, clients: Clients, sample_teacher: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    safe = files(sample_teacher)
    torch.save(load_file(sample_teacher / "model.safetensors"), tmp_path / "weights")
    pickled = {name: content for name, content in safe.items() if name != "model.safetensors"}
    pickled["pytorch_model.bin"] = (tmp_path / "weights").read_bytes()
    hub.add("lab/both", safe | {"pytorch_model.bin": b"never read", "tf_model.h5": b"never read"})
    hub.add("lab/pickled", pickled)
    sha256 = load_teacher(str(sample_teacher)).sha256
    for name in ("both", "pickled"):
        command = ["build", "--lang", "kin", "--sample", "--views", "1", "--out", f"{name}.zarr"]
        hub.requests.clear()
        done(clients.run("cache_tools", [*command, "--teacher", f"lab/{name}"], tmp_path))
        cache = open_cache(tmp_path / f"{name}.zarr")
        assert cache.recipe.teacher_sha256 == sha256
        asked = {request.rsplit("/", 1)[1] for request in hub.requests if "/resolve/" in request}
        assert ("pytorch_model.bin" in asked) == (name == "pickled")
        assert "tf_model.h5" not in asked and not [r for r in hub.requests if "discussions" in r or "refs" in r]


@pytest.mark.slow
def test_a_commit_cached_in_part_is_completed(hub: Hub, clients: Clients, sample_teacher: Path, tmp_path: Path) -> None:
    commit = hub.add("lab/part", files(sample_teacher))
    part = clients.home / "hub" / "models--lab--part" / "snapshots" / commit
    part.mkdir(parents=True)
    (part / "config.json").write_bytes((sample_teacher / "config.json").read_bytes())
    command = ["build", "--lang", "kin", "--sample", "--views", "1", "--teacher", f"lab/part@{commit}"]
    done(clients.run("cache_tools", command, tmp_path))
    assert open_cache(tmp_path / "kin.zarr").provenance["teacher_revision"] == commit
