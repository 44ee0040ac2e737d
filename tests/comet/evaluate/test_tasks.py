"""Every task reads its published format, official splits, whole; what cannot be is refused with file and line."""

import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_tools.errors import CometError
from comet.cli.evaluate import TASK_NAMES
from comet.evaluate.datasets import SPLITS, Example, hub_split, load_task, read_file, read_table
from comet.evaluate.tasks import TASKS, Task, find_task

TWEETS = 'tweet\tlabel\n""Ni byiza"" cyane 😊\tpositive\nOya\tnegative\n'
NEWS = 'category\theadline\ttext\turl\nsports\tUmukino\t"Amavubi ""yatsinze"" umukino\n\nku cyumweru."\thttp\n'
SENTENCES = "index_id\tcategory\ttext\n1\tscience/technology\tIsi irazenguruka.\n"
ENTITIES = "Paul B-PER\nKagame I-PER\natuye O\nKigali\tB-LOC\n\nYego O\n"
TAGS = "Abana NOUN\nbarakina VERB\n. PUNCT\n"
FILES = {"afrisenti": TWEETS, "masakhaner": ENTITIES, "masakhanews": NEWS, "sib200": SENTENCES, "masakhapos": TAGS}


def write(folder: Path, task: Task, content: str | None = None, splits: tuple[str, ...] = tuple(SPLITS)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        ending = "txt" if task.tagging else "tsv"
        (folder / f"{split}.{ending}").write_text(content or FILES[task.name], encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("afrisenti", [(('""Ni byiza"" cyane 😊',), ("positive",)), (("Oya",), ("negative",))]),
        ("masakhanews", [(('Umukino Amavubi "yatsinze" umukino\n\nku cyumweru.',), ("sports",))]),
        ("sib200", [(("Isi irazenguruka.",), ("science/technology",))]),
        (
            "masakhaner",
            [(("Paul", "Kagame", "atuye", "Kigali"), ("B-PER", "I-PER", "O", "B-LOC")), (("Yego",), ("O",))],
        ),
        ("masakhapos", [(("Abana", "barakina", "."), ("NOUN", "VERB", "PUNCT"))]),
    ],
)
def test_each_format(name: str, expected: list[Any], tmp_path: Path) -> None:
    data = load_task(find_task(name), "kin", write(tmp_path, find_task(name)))
    assert list(data.reported.examples) == [Example(*one) for one in expected]
    assert data.train.examples == data.reported.examples


def test_the_test_split_is_reported_and_dev_where_there_is_none(tmp_path: Path) -> None:
    task = find_task("afrisenti")
    data = load_task(task, "kin", write(tmp_path / "all", task))
    assert (data.reported.name, data.reported.origin) == ("test", "test.tsv")
    assert data.chosen_on is not None and data.chosen_on.name == "dev"
    data = load_task(task, "kin", write(tmp_path / "two", task, splits=("train", "dev")))
    assert data.reported.name == "dev" and data.chosen_on is None


def test_folders_by_language_under_either_name(tmp_path: Path) -> None:
    task = find_task("sib200")
    write(tmp_path / "kin", task)
    write(tmp_path / "swh_Latn", task, SENTENCES.replace("Isi", "Dunia"))
    assert load_task(task, "kin", tmp_path).train.examples[0].parts == ("Isi irazenguruka.",)
    assert load_task(task, "swa", tmp_path).train.examples[0].parts == ("Dunia irazenguruka.",)
    assert [task.code(language) for language in ("orm", "mlg", "ara")] == ["gaz_Latn", "plt_Latn", "arb_Arab"]


def test_compression_bom_and_line_ends_change_nothing(tmp_path: Path) -> None:
    for name in ("afrisenti", "masakhaner"):
        task = find_task(name)
        plain = load_task(task, "kin", write(tmp_path / name, task))
        folder = tmp_path / f"{name}-xz"
        folder.mkdir()
        for path in (tmp_path / name).iterdir():
            windows = b"\xef\xbb\xbf" + path.read_bytes().rstrip().replace(b"\n", b"\r\n")
            (folder / f"{path.name}.xz").write_bytes(lzma.compress(windows))
        packed = load_task(task, "kin", folder)
        assert packed.train.examples == plain.train.examples
        assert packed.train.sha256() == plain.train.sha256()


def test_the_checksum_sees_texts_and_labels(tmp_path: Path) -> None:
    task = find_task("afrisenti")
    contents = [TWEETS, TWEETS.replace("Oya", "Yego"), TWEETS.replace("negative", "neutral")]
    sums = {load_task(task, "kin", write(tmp_path / str(i), task, c)).train.sha256() for i, c in enumerate(contents)}
    assert len(sums) == 3


def test_a_few_shot_training_split_is_taken_and_named(tmp_path: Path) -> None:
    task = find_task("masakhanews")
    write(tmp_path, task, splits=("dev", "test"))
    (tmp_path / "train_fewshot50.tsv").write_text(NEWS, encoding="utf-8")
    assert load_task(task, "hau", tmp_path).train.origin == "train_fewshot50.tsv"
    (tmp_path / "train_fewshot5.tsv").write_text(NEWS, encoding="utf-8")
    with pytest.raises(CometError, match=r"train_fewshot5.tsv, train_fewshot50.tsv could all be the train split"):
        load_task(task, "hau", tmp_path)
    write(tmp_path, task, splits=("train",))
    assert load_task(task, "hau", tmp_path).train.origin == "train.tsv"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("afrisenti", "tweet\tlabel\nOya\tbad\n", r"dev.tsv line 2: label 'bad' is none of afrisenti's: positive, "),
        ("afrisenti", "tweet\tlabel\nOya\n", r"dev.tsv line 2: expected 2 fields between tabs as in line 1, found 1"),
        ("afrisenti", "a\tb\tc\n", r"dev.tsv line 1: no column tweet, label; .*afrisent-semeval-2023, found a, b, c"),
        ("afrisenti", "tweet\tlabel\n", r"dev.tsv: holds no example of AfriSenti"),
        ("masakhanews", NEWS.replace('."', "."), r"dev.tsv line 4: a quotation mark before this line is never closed"),
        ("masakhaner", "Paul B-PER\nKagame\n", r"dev.txt line 2: expected a word and its tag, found 'Kagame'"),
        ("masakhanews", NEWS.replace('."', ".") + NEWS + NEWS.partition("\n")[2], r"dev.tsv line \d+: "),
        ("masakhanews", NEWS.replace('"Amavubi', '"Ama" vubi'), r"dev.tsv line 2: .* expected after"),
        ("masakhanews", NEWS + "sports\ta\tb\0\tc\n", r"dev.tsv line 5: holds a NUL, as UTF-16 does"),
        (
            "masakhaner",
            "Paul B-PER\nKagame NN B-NP B-PER\n",
            r"dev.txt line 2: expected a word and its tag, fou",
        ),
        ("masakhaner", "1 Paul _ B-PER _\n", r"dev.txt line 1: expected a word and its tag, found '1 Paul _ B-PER _'"),
        (
            "masakhaner",
            "Paul Kagame B-PER\n",
            r"line 1: .*; or, in all of a file, the four columns of CoNLL-2003",
        ),
        ("masakhaner", "Paul PER\n", r"dev.txt line 1: label 'PER' is none of masakhaner's: O, B-PER"),
        ("masakhapos", "\n\n", r"dev.txt: holds no example of MasakhaPOS"),
    ],
)
def test_broken_files_are_named_with_their_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    task = find_task(name)
    with pytest.raises(CometError, match=message):
        read_file(task, "dev", next(write(tmp_path, task, content, splits=("dev",)).iterdir()))


@pytest.mark.parametrize(
    "content",
    [
        "Paul\tB-PER\nari\tO\n\nEgo\tO\n",
        "Paul  B-PER\nari \t O\n\nEgo   O\n",
        "Paul B-PER\r\nari O\r\n \r\nEgo O",
        "\n\nPaul B-PER \nari O \n \t\n\nEgo O\n\n",
        "-DOCSTART- -X- -X- O\n\nPaul NN B-NP B-PER\nari VB B-VP O\n\n-DOCSTART- -X- -X- O\n\nEgo UH O O\n",
        "-DOCSTART- O\nPaul B-PER\nari O\n-DOCSTART- O\nEgo O\n",
        "\ufeffPaul B-PER\nari O\n\nEgo O\n",
    ],
)
def test_shapes_of_tagged_files_read_alike(content: str, tmp_path: Path) -> None:
    task = find_task("masakhaner")
    write(tmp_path, task, content, splits=("dev",))
    found = [(one.parts, one.labels) for one in read_file(task, "dev", tmp_path / "dev.txt").examples]
    assert found == [(("Paul", "ari"), ("B-PER", "O")), (("Ego",), ("O",))]


def test_other_bytes_than_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(TWEETS.encode("utf-16"))
    with pytest.raises(CometError, match=r"dev.tsv: is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 "):
        list(read_table(find_task("afrisenti"), path))
    path.write_bytes(TWEETS.replace("tweet", "tweét", 1).encode("latin-1", "replace"))
    with pytest.raises(CometError, match=r"dev.tsv: cannot be read as UTF-8 text"):
        list(read_table(find_task("afrisenti"), path))


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("tweet\tlabel\ttweet\nMwaramutse\tpositive\tMuraho\n")
    with pytest.raises(CometError, match=r"dev.tsv line 1: the column tweet occurs twice; leave one of them"):
        list(read_table(find_task("afrisenti"), path))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ((), r"no train.tsv \(also .gz, .xz, .zst\) for --lang kin; expected train, dev and test.tsv as in"),
        (("train",), r"no test.tsv or dev.tsv"),
        (("dev",), "no train.tsv"),
    ],
)
def test_missing_splits_say_what_to_do(splits: tuple[str, ...], message: str, tmp_path: Path) -> None:
    task = find_task("afrisenti")
    with pytest.raises(CometError, match=message) as caught:
        load_task(task, "kin", write(tmp_path, task, splits=splits))
    assert task.source in str(caught.value) and caught.value.exit_code == 2


def test_the_command_line_names_every_task() -> None:
    assert ", ".join(task.name for task in TASKS) == TASK_NAMES


def test_an_unknown_task_and_folder_are_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(CometError, match=r"--task glue: no such task; expected afrisenti, masakhaner") as caught:
        find_task("glue")
    assert caught.value.exit_code == 2
    with pytest.raises(CometError, match=r"nowhere: no such folder; get the files from https://github.com/masakhane"):
        load_task(find_task("masakhaner"), "kin", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["masakhaner", "masakhapos"])
def test_data_behind_a_loading_script_is_said_to_be(name: str) -> None:
    with pytest.raises(CometError, match=rf"--task {name}: .*loading script.*masakhane-io.*give --data FOLDER"):
        load_task(find_task(name), "kin", None)


def test_a_set_that_the_hub_does_not_give_is_one_clear_line() -> None:
    with pytest.raises(CometError, match=r"--task sib200: nobody/nothing: not in the hub's cache") as caught:
        load_task(replace(find_task("sib200"), hub="nobody/nothing"), "kin", None)
    assert str(caught.value).endswith(
        "HF_HUB_OFFLINE is set; unset it, copy the cache from a machine with network, or download the original files "
        "from https://github.com/dadelani/sib-200 and give --data FOLDER"
    )


def test_hub_rows_with_numbered_and_with_named_labels(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    task = find_task("masakhanews")
    features = Features(
        {"label": ClassLabel(names=list(task.labels)), "headline": Value("string"), "text": Value("string")}
    )
    rows = Dataset.from_dict({"label": [5, 2], "headline": ["A", "B"], "text": ["a", None]}, features=features)
    assert hub_split(task, "test", rows).examples == (Example(("A a",), ("sports",)), Example(("B ",), ("health",)))
    named = Dataset.from_dict({"tweet": ["Oya"], "label": ["negative"]})
    assert hub_split(find_task("afrisenti"), "dev", named).examples == (Example(("Oya",), ("negative",)),)
    with pytest.raises(CometError, match=r"masakhane/afrisenti: no column tweet, found label"):
        hub_split(find_task("afrisenti"), "dev", named.remove_columns("tweet"))
    with pytest.raises(CometError, match=r"Davlan/sib200 row 1: label 'negative' is none of sib200's"):
        hub_split(replace(find_task("sib200"), text=("tweet",), hub_label="label"), "dev", named)


def test_the_real_files_are_read_whole(shared: Path) -> None:
    """Published files of every task: as many examples as the format has, every label known."""
    for task in TASKS:
        for language in ["yor"] if task.name == "masakhanews" else ["kin", "yor"]:
            data = load_task(task, language, shared / "data" / task.name)
            assert len(data.train.examples) >= 350 and len(data.reported.examples) >= 200
            assert all(any(part.strip() for part in e.parts) for s in (data.train, data.reported) for e in s.examples)
    assert len(load_task(find_task("afrisenti"), "kin", shared / "data" / "afrisenti").train.examples) == 3302
    assert len(load_task(find_task("masakhanews"), "yor", shared / "data" / "masakhanews").train.examples) == 1433
