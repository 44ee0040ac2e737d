"""No document that repeats an evaluation item gets into a cache, all others do, and the cache says so."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard
from click.testing import CliRunner
from helpers.builds import digests
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_tools.text.corpus
import cache_tools.text.exclusion
from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.text.corpus import excluded_ngrams, spool_documents
from cache_tools.text.exclusion import contain_ngram, index_ngrams, words
from cache_tools.text.files.items import items
from cache_tools.text.files.text_file import ITEM_FORMATS
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.text.sources import find_sources

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
LETTERS = st.lists(st.sampled_from("ab"), max_size=14)
LEXICON = ["amakuru", "cy", "ọ̀rọ̀", "ẹ́", "ሰላም", "2024", "𞤆𞤵𞤤", "ƙasa"]
PUNCTUATION = [" ", "  ", ", ", "-", " – ", "...", "'", "’", "ʼ", "_", "\t", "“ ", " 😂 "]


def dropped(documents: list[str], *evaluation: str) -> list[bool]:
    """Which documents share a run with one of the items."""
    return contain_ngram(documents, index_ngrams(words(item) for item in evaluation)).tolist()


def holds(document: list[str], item: list[str]) -> bool:
    """The rule, word by word."""
    if len(item) < 5:
        return document == item != []
    size = min(8, len(item))
    runs = [item[i : i + size] for i in range(len(item) - size + 1)]
    return any(document[i : i + size] in runs for i in range(len(document) - size + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ijambo RIMWE, 2024!", ["ijambo", "rimwe", "2024"]),
        ("cy'abana cy’abana cyʼabana cy' abana", ["cy", "abana"] * 4),
        ("Ọ̀rọ̀ o\u0323\u0300ro\u0323\u0300 ÒRÒ", ["ọ̀rọ̀", "ọ̀rọ̀", "òrò"]),
        ("ﬁ Ⅳ ２ Straße", ["fi", "iv", "2", "strasse"]),
        ("ሰላም፣ለዓለም हिन्दी 𞤆𞤵𞤤𞤢𞥄𞤪", ["ሰላም", "ለዓለም", "हिन्दी", "𞤨𞤵𞤤𞤢𞥄𞤪"]),
        ("RT @user: @Ange_K reba https://t.co/Ab1?x=2 #Rwanda_Rwiza", ["rt", "reba", "rwanda", "rwiza"]),
        ("\u0301abc - … 😂 _", ["abc"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@settings(deadline=None)
@given(st.lists(LETTERS, max_size=6), st.lists(LETTERS.filter(bool), max_size=6))
def test_the_rule_word_by_word(documents: list[list[str]], evaluation: list[list[str]]) -> None:
    found = contain_ngram([" ".join(document) for document in documents], index_ngrams(evaluation))
    assert found.tolist() == [any(holds(document, item) for item in evaluation) for document in documents]


def test_the_filter_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_tools.text.exclusion, "FILTER_BITS", 1)
    documents = [f"{n} {n + 1} c d e f g h" for n in range(200)]
    assert dropped(documents, *(documents[n] for n in range(0, 200, 40))) == [n % 40 == 0 for n in range(200)]


@settings(deadline=None)
@given(st.data())
def test_a_copy_is_found_whatever_its_case_and_punctuation(data: st.DataObject) -> None:
    item = data.draw(st.lists(st.sampled_from(LEXICON), min_size=5, max_size=20))
    size = min(8, len(item))
    start = data.draw(st.integers(0, len(item) - size))
    written = [data.draw(st.sampled_from([word, word.upper()])) for word in item[start : start + size]]
    copy = "".join(word + data.draw(st.sampled_from(PUNCTUATION)) for word in written)
    before, after = (" ".join(data.draw(st.lists(st.sampled_from([*LEXICON, "andi"]), max_size=9))) for _ in "ab")
    assert dropped(["andi", f"{before} {copy} {after}", "andi"], " ".join(item)) == [False, True, False]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("a b c d e f g h", [True, True, False, False]),
        ("a b c d e f g h i j", [True, True, False, False]),
        ("b c d e f", [True, True, True, False]),
        ("A, b c. D!", [False, False, False, True]),
        ("c", [False, False, False, False]),
    ],
)
def test_long_and_short_items(item: str, expected: list[bool]) -> None:
    assert dropped(["x a b c d e f g h y", "a b c d e f g h", "a b c d e f g x h", "a b c d"], item) == expected


def test_a_run_does_not_go_on_in_the_next_document() -> None:
    assert dropped(["a b c d", "e f g h", "", "c d e f g h"], "a b c d e f g h") == [False] * 4
    assert dropped(["a", "b", "a b", "b a"], "a b") == [False, False, True, False]


def test_marks_make_another_word() -> None:
    assert dropped(["ọkọ̀ kan wà ní ibẹ̀", "oko kan wa ni ibe"], "ọkọ̀ kan wà ní ibẹ̀") == [True, False]


def read(path: Path) -> list[str]:
    return [item for source in find_sources((str(path),), "--exclude", ITEM_FORMATS) for item in items(source)]


CONTENT: dict[str, tuple[str, list[str]]] = {
    "a.txt": ("Umwe\n\nKabiri na ETATU\n", ["Umwe", "Kabiri na ETATU"]),
    "a.jsonl": ('{"text": "Umwe", "label": "x"}\n', ["Umwe", "x"]),
    "headline.jsonl": ('{"headline": "Umwe", "year": 2024, "text": null}\n\n', ["Umwe"]),
    "tokens.jsonl": ('{"tokens": ["Umwe", "kabiri"], "tags": [0, 3]}\n', ["Umwe kabiri", "Umwe", "kabiri"]),
    "nested.jsonl": ('{"translation": {"en": "One", "rw": "Umwe"}}\n', ["One", "Umwe"]),
    "a.tsv": ('tweet\tlabel\n"Yego ""we\tpositive\n', ["tweet", "label\n", '"Yego ""we', "positive\n"]),
    "a.csv": ('id,text\n1,"Yego, we\nni ""byo"""\n', ["id", "text", "1", 'Yego, we\nni "byo"']),
    "tabs.txt": ("Umwe na kabiri\tpositive\n", ["Umwe na kabiri\tpositive", "Umwe na kabiri", "positive"]),
    "column.tsv": ("tweet\nYego, we\n", ["tweet\n", "Yego, we\n"]),
    "column.csv": ("tweet\nYego; we\n", ["tweet", "Yego; we"]),
    "a.conll": ("\nUmwe X Y\nkabiri\n\ngatatu O\n", ["", "Umwe kabiri", "gatatu"]),
    "ner.txt": ("Kigali B-LOC\n. O\n\ncy' O\n", ["Kigali .", "cy'"]),
    "lower.txt": ("Kigali b-loc\nni O\n", ["Kigali ni"]),
    "columns.txt": ("-DOCSTART- -X- -X- O\n\nKigali NNP X B-LOC\nni VBZ X O\n", ["-DOCSTART-", "Kigali ni"]),
    "text.txt": ("Kigali ni umugi\nB-LOC\n", ["Kigali ni umugi", "B-LOC"]),
    "pos.txt": ("Ni\tVERB\n,\tPUNCT\n\n", ["Ni ,", ""]),
}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", CONTENT)
def test_items_of_every_format(tmp_path: Path, name: str, ending: str) -> None:
    content, expected = CONTENT[name]
    (tmp_path / f"{name}{ending}").write_bytes(PACKERS[ending](content.encode()))
    assert [item for item in read(tmp_path) if item] == [item for item in expected if item]


def test_items_of_parquet(tmp_path: Path) -> None:
    columns = {"headline": ["Umwe", None], "label": [0, 1], "tokens": [["Yego", "we"], []]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    assert [item for item in read(tmp_path) if item] == ["Umwe", "Yego we", "Yego", "we"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n - \n@user\n", "--exclude a.txt: expected evaluation items, found no words"),
        ("a.csv", "", "--exclude a.csv: expected evaluation items, found no words"),
    ],
)
def test_a_file_without_items(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CometError) as caught:
        excluded_ngrams(find_sources((str(tmp_path),), "--exclude", ITEM_FORMATS))
    assert (str(caught.value), caught.value.exit_code) == (message, 2)


def test_items_too_short_to_exclude_more_than_themselves_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = "Kigali location\nni other\numugi other\n"
    (tmp_path / "ner.txt").write_text(tokens + "umwe kabiri gatatu kane gatanu\n")
    excluded_ngrams(find_sources((str(tmp_path),), "--exclude", ITEM_FORMATS))
    assert capsys.readouterr().out == (
        "--exclude ner.txt: 3 of its 4 items have fewer than 5 words, and exclude only documents of just these; if it "
        "has one token a line, call it .conll\n"
    )
    (tmp_path / "ner.txt").rename(tmp_path / "ner.conll")
    excluded_ngrams(find_sources((str(tmp_path),), "--exclude", ITEM_FORMATS))
    assert capsys.readouterr().out == ""
    (tmp_path / "ner.conll").unlink()
    (tmp_path / "ner.tsv").write_text(tokens.replace(" ", "\t"))
    excluded_ngrams(find_sources((str(tmp_path),), "--exclude", ITEM_FORMATS))
    assert "ner.tsv: 6 of its 6 items have fewer than 5 words" in capsys.readouterr().out


def test_a_table_with_an_open_quote(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"' + "ijambo " * 20_000 + "\n")
    with pytest.raises(CometError, match=r"^a\.csv line 2: not CSV: .*; is a quote open\? rename a table with tabs"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "header"), [("a.csv", "text;label"), ("a.csv", "text\tlabel"), ("a.tsv", "text,label")]
)
def test_a_table_with_other_separators(tmp_path: Path, name: str, header: str) -> None:
    """As one field with its label, a text of fewer than eight words would be in no document."""
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(CometError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{name} line 1: expected commas between the fields of a .csv, tabs between those of a .tsv, found {header!r}; "
        "save it so, or as .txt if it has one text a line"
    )


def test_files_that_cannot_be_items(tmp_path: Path) -> None:
    endings = ".txt, .jsonl, .parquet, .tsv, .csv, .conll"
    (tmp_path / "test.doc").write_text("x")
    for path, message in (
        (tmp_path, f"the folder holds no {endings} file"),
        (tmp_path / "test.tsv", "no such file or folder"),
        (
            tmp_path / "test.doc",
            f"expected {endings} (all but .parquet also with .gz, .xz, .zst), found 'test.doc'; save it as .txt, one "
            "document per line",
        ),
    ):
        with pytest.raises(CometError) as caught:
            read(path)
        assert (str(caught.value), caught.value.exit_code) == (f"--exclude {path}: {message}", 2)


def test_tables_are_items_but_not_text(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("Umwe\n")
    with pytest.raises(CometError, match=r"^--text .*: the folder holds no \.txt, \.jsonl, \.parquet file$"):
        find_sources((str(tmp_path),))


@pytest.fixture(scope="module")
def lines(sample_text: Path) -> list[str]:
    return [line.strip() for line in sample_text.read_text().splitlines()]


@pytest.mark.parametrize("at_once", [1, 3, 1024])
@pytest.mark.parametrize(("tokens_of", "left_out"), [(None, 4), (20, 3), (21, 4)])
def test_what_is_left_out_is_counted_as_far_as_the_text_is_used(
    tokens_of: int | None, left_out: int, at_once: int, tmp_path: Path, lines: list[str], sample_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`max_tokens` ends the text after so many documents, the fourth to leave out is the 21st."""
    monkeypatch.setattr(cache_tools.text.corpus, "DOCUMENTS_AT_ONCE", at_once)
    evaluation, corpus, empty = tmp_path / "test.txt", tmp_path / "text.txt", tmp_path / "empty"
    evaluation.write_text("\n".join(lines[i] for i in (0, 5, 6, 20)))
    corpus.write_text("\n".join(lines[:30]))
    empty.mkdir()
    tokenizer = load_teacher_tokenizer(str(sample_teacher))
    sizes = [len(tokenizer.encode(line, add_special_tokens=False)) for line in lines]
    kept = [i for i in range(30) if i not in (0, 5, 6, 20)]
    if tokens_of is not None:
        kept = [i for i in kept if i < (20 if tokens_of == 20 else 22)]
    asked = BuildSettings(
        out=tmp_path / "kin.zarr", language="kin", teacher="any", text=(str(corpus),),
        max_tokens=None if tokens_of is None else sum(sizes[i] for i in kept),
    )  # fmt: skip
    spool = spool_documents(
        find_sources(asked.text), find_sources((str(evaluation),)), tokenizer, empty, asked.token_limit
    )
    assert [len(ids) for _, ids in spool.documents()] == [sizes[i] for i in kept]
    assert spool.excluded == left_out


def test_text_of_nothing_but_items(tmp_path: Path, lines: list[str], sample_teacher: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(lines))
    asked = BuildSettings(out=tmp_path, language="kin", teacher="any", text=(str(corpus),), exclude=(str(corpus),))
    sources = find_sources(asked.text)
    message = rf"^--text text\.txt: of {len(lines)} documents --exclude leaves none; expected one document per line$"
    with pytest.raises(CometError, match=message):
        spool_documents(sources, sources, load_teacher_tokenizer(str(sample_teacher)), tmp_path, None)


def test_text_of_nothing(tmp_path: Path, sample_teacher: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n")
    sources = find_sources((str(tmp_path / "text.txt"),))
    with pytest.raises(CometError, match=r"^--text text\.txt: found no text; expected one document per line$"):
        spool_documents(sources, (), load_teacher_tokenizer(str(sample_teacher)), tmp_path, None)


def command(folder: Path, *more: str) -> list[str]:
    call = ["build", "--lang", "kin", "--sample", "--device", "cpu", "--out", str(folder / "kin.zarr"), *more]
    call += ["--max-tokens", "900", "--views", "1", "--seq-len", "32", "--attention-layers", "none"]
    return [*call, "--exclude", str(folder / "dev.tsv"), "--exclude", str(folder / "test.txt")]


@pytest.mark.slow
def test_the_command_says_and_records_what_it_left_out(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "dev.tsv").write_text(f"tweet\tlabel\n{lines[2].upper()}\tpositive\n")
    (tmp_path / "test.txt").write_text("\n".join([lines[4], lines[7], lines[-1]]))
    dry = CliRunner().invoke(main, command(tmp_path, "--dry-run"))
    built = CliRunner().invoke(main, command(tmp_path))
    facts = json.loads(CliRunner().invoke(main, ["info", str(tmp_path / "kin.zarr"), "--json"]).stdout)
    said = facts["left_out"]
    total = 3 + open_cache(tmp_path / "kin.zarr").provenance["documents"]
    assert said == f"3 of {total} documents that share 8 words in a row with 2 evaluation files"
    assert f"left out {said}\n" in dry.stdout
    assert f"left out {said}\n" in built.stdout
    assert facts["excluded"] == "dev.tsv, test.txt"

    before: Any = digests(tmp_path / "kin.zarr")
    again = CliRunner().invoke(main, command(tmp_path))
    assert (again.exit_code, again.stderr) == (0, "")
    (tmp_path / "test.txt").write_text("\n".join([lines[4], lines[8], lines[-1]]))
    other = CliRunner().invoke(main, command(tmp_path))
    assert other.exit_code == 2
    assert "--exclude: asked dev.tsv (" in other.stderr
    assert digests(tmp_path / "kin.zarr") == before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["afrisenti", "masakhaner", "masakhanews", "masakhapos", "sib200"])
def test_every_item_of_the_real_sets_is_found_in_running_text(shared: Path, task: str) -> None:
    sources = find_sources((str(shared / "data" / task / "swa"),), "--exclude", ITEM_FORMATS)
    found = [item for source in sources for text in items(source) if len(item := words(text)) >= 5]
    assert len(found) > 300
    runs = excluded_ngrams(sources)
    assert contain_ngram([f"Andi magambo: {' '.join(item).title()}." for item in found], runs).all()
    interrupted = [" qqq ".join(" ".join(item[i : i + 4]) for i in range(0, len(item), 4)) for item in found]
    assert not contain_ngram(interrupted, runs).any()
