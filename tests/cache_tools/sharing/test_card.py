"""The card of a shared cache, and what push asks before a text is given away."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.small_caches import commit, prepare_cache, shard_keys, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.cli.main import main
from cache_tools.sharing.card import card, in_doubt, text_licences
from cache_tools.store.ledger import CARD
from cache_tools.verify.verify import verify

RECIPE = small_recipe()
FREE = {"name": "hf:wikimedia/wikipedia:20231101.rw", "revision": "b" * 40, "licence": "cc-by-sa-3.0, gfdl"}
MADE_FROM = {
    "language": "kin",
    "language_name": "Kinyarwanda",
    "teacher": "Davlan/afro-xlmr-large",
    "teacher_licence": "mit",
    "text_tokens": 1234,
}


def made_from(root: Path, *texts: dict[str, str], **changes: object) -> Cache:
    """A complete small cache of these texts."""
    provenance = MADE_FROM | {"text": list(texts)} | changes
    shards = prepare_cache(root, RECIPE, attributes={"provenance": provenance})
    for key in shard_keys(RECIPE):
        commit(root, RECIPE, key, shards[key])
    return open_cache(root)


def push(cache: Cache, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["push", str(cache.root), str(folder), *options])


def test_a_card_says_what_the_cache_is(tmp_path: Path) -> None:
    cache = made_from(tmp_path / "kin", FREE)
    done = push(cache, tmp_path / "there")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "there" / CARD).read_text()
    for said in (
        "language: kin\n",
        "| language | Kinyarwanda (kin) |",
        "| teacher | Davlan/afro-xlmr-large: XLMRobertaForMaskedLM, 1,000 parameters (mit) |",
        "| tokens | 1,234, 1 view |",
        "| shards | 3 of 3 train, 1 of 1 validation |",
        "attention (layer 1, 2 of 0–",
        "Logits: the best tokens exactly, and the mass of all others as one number",
        "`comet-cache verify CACHE --teacher TEACHER --rows 256`",
        "| hf:wikimedia/wikipedia:20231101.rw | cc-by-sa-3.0, gfdl |",
        f"comet-cache pull URL-OF-THIS-FOLDER kin.zarr --id {cache.cache_id}\n",
    ):
        assert said in text
    assert str(tmp_path) not in text
    assert verify(tmp_path / "there").damage == []
    assert open_cache(tmp_path / "there").cache_id == cache.cache_id
    assert "\nLeft out: nothing, since no evaluation files were given (--exclude).\n" in text


def test_the_card_of_an_unfinished_cache_counts_what_is_there(tmp_path: Path) -> None:
    cache = made_from(tmp_path / "kin", FREE)
    (cache.root / "ledger/train-00001.json").unlink()
    done = push(open_cache(cache.root), tmp_path / "there")
    assert done.exit_code == 1 and "1 shards are not built yet" in done.stderr
    text = (tmp_path / "there" / CARD).read_text()
    assert "| shards | 2 of 3 train, 1 of 1 validation so far |" in text
    assert "| cache id | none yet: it is not complete |" in text


def test_a_card_names_what_was_left_out(tmp_path: Path) -> None:
    excluded = [{"name": "dev.tsv"}, {"name": "*test*.txt"}]
    cache = made_from(
        tmp_path / "kin", FREE, excluded=excluded, documents=90, excluded_documents=10, excluded_run_words=8
    )
    assert push(cache, tmp_path / "there").exit_code == 0
    said = "10 of 100 documents that share 8 words in a row with 2 evaluation files: dev.tsv, \\*test\\*.txt."
    assert f"Left out: {said}\n" in (tmp_path / "there" / CARD).read_text()


def test_what_a_cache_says_cannot_break_its_card(tmp_path: Path) -> None:
    named = {"name": "a|b\n## Free\x1b[31m", "licence": "[cc0-1.0](http://x) <script>"}
    cache = made_from(tmp_path / "kin", named)
    lines = card(cache, cache.extent, 1, None).splitlines()
    assert r"| a\|b\\n\#\# Free\\x1b\[31m | \[cc0-1.0\](http://x) \<script\> |" in lines
    assert not any(line.startswith("## Free") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("licence", "is_in_doubt"),
    [
        ("cc-by-4.0", False),
        ("cc0-1.0", False),
        ("odc-by", False),
        ("mit, apache-2.0", False),
        ("cc-by-nc-4.0", True),
        ("CC BY-NC-SA 4.0", True),
        ("non-commercial", True),
        ("research only", True),
        ("other", True),
        ("licence not stated", True),
        (None, True),
    ],
)
def test_licences_that_need_consent(tmp_path: Path, licence: str | None, is_in_doubt: bool) -> None:
    cache = made_from(tmp_path / "kin", {"name": "corpus.txt"} | ({"licence": licence} if licence else {}))
    assert bool(in_doubt(text_licences(cache.provenance))) == is_in_doubt
    done = push(cache, tmp_path / "there")
    shown = licence or "licence not stated"
    assert done.stdout.startswith(
        "a cache holds layers of Davlan/afro-xlmr-large, under its licence (mit)\n"
        f"a cache holds its text word for word; this one holds that of corpus.txt ({shown})\n"
    )
    assert done.exit_code == (2 if is_in_doubt else 0)
    assert (tmp_path / "there").exists() != is_in_doubt
    if is_in_doubt:
        assert done.stderr == (
            f"error: {cache.root}: the licence of corpus.txt ({shown}) is unknown or restricts its use; if you may "
            "share it, say so with --i-may-share-this; if not, leave the text out with --detach-text\n"
        )
        assert push(cache, tmp_path / "there", "--i-may-share-this").exit_code == 0


def test_a_cache_that_names_no_text_is_in_doubt(tmp_path: Path) -> None:
    assert in_doubt(text_licences(made_from(tmp_path / "kin").provenance))


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    cache = made_from(tmp_path / "kin", FREE)
    push(cache, tmp_path / "there")
    push(cache, tmp_path / "there")
    (tmp_path / "there" / CARD).write_text("# Ours\n")
    done = push(cache, tmp_path / "there")
    assert done.exit_code == 0
    assert f"{tmp_path / 'there'}/README.md was not written by comet-cache and is kept\n" in done.stdout
    assert (tmp_path / "there" / CARD).read_text() == "# Ours\n"
