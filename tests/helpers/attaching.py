"""A small real cache whose text lies in several files, and how that is attached."""

from pathlib import Path

from click.testing import CliRunner, Result

from cache_tools import Cache
from cache_tools.cli.main import main
from cache_tools.settings import BuildSettings
from helpers.builds import digests


def write_corpus(folder: Path, text: Path) -> Path:
    """Two files of text, more than the cache takes, and an evaluation file that three documents share words with."""
    lines = text.read_text(encoding="utf-8").splitlines()
    parts = {"a.txt": lines[:60], "b.txt": lines[60:], "test.txt": [lines[4], lines[7], lines[61]]}
    for name, part in parts.items():
        (folder / name).write_text("\n".join(part), encoding="utf-8")
    return folder


def given(corpus: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`--text` and `--exclude`."""
    return (str(corpus / "a.txt"), str(corpus / "b.txt")), (str(corpus / "test.txt"),)


def settings_for(out: Path, teacher: Path, corpus: Path) -> BuildSettings:
    text, exclude = given(corpus)
    return BuildSettings(
        out=out,
        language="kin",
        teacher=str(teacher),
        text=text,
        exclude=exclude,
        max_tokens=1500,
        seq_len=48,
        views=3,
        seed=7,
        rows_per_shard=16,
        top_k=8,
        attention_size=8,
        device="cpu",
    )


def call(cache: Cache, texts: list[Path], exclude: Path) -> list[str]:
    options = [part for one in texts for part in ("--text", str(one))]
    return ["attach", str(cache.root), *options, "--exclude", str(exclude)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, str]:
    """Without locks, and without what a process that only seems to have died still holds."""
    found = {path: digest for path, digest in digests(folder).items() if digest != "folder"}
    return {path: d for path, d in found.items() if not path.endswith("lock") and ".staging-" not in path}
