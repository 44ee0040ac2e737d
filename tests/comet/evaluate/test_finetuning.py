"""A real small model learns small tasks, the same way for the same seed, and is scored on all that it was given."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_tasks import write_entities, write_topics
from helpers.tiny_teachers import byte_pairs
from safetensors.torch import load_file, save_file
from tokenizers import Encoding, Tokenizer, models, normalizers, processors
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools.errors import CometError
from cache_tools.models import max_positions
from comet.evaluate.datasets import Example, TaskData, load_task
from comet.evaluate.finetuning import (
    IGNORED,
    UNSEEN,
    FineTuning,
    default_learning_rate,
    encode,
    fine_tune,
    first_tokens,
    load_for_task,
    predict,
    training_items,
)
from comet.evaluate.tasks import find_task

CPU = torch.device("cpu")
HOW = FineTuning(epochs=3, batch_size=4, learning_rate=5e-4)


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    return load_task(find_task("sib200"), "kin", write_topics(tmp_path_factory.mktemp("sib200") / "kin"))


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    return load_task(find_task("masakhaner"), "kin", write_entities(tmp_path_factory.mktemp("ner") / "kin"))


def tuned(name: Path, data: TaskData, seed: int, how: FineTuning = HOW) -> tuple[torch.nn.Module, list[list[str]]]:
    model, tokenizer = load_for_task(str(name), data.task, seed)
    fine_tune(model, encode(tokenizer, data.train.examples, data.task, 64), data.task, how, seed, CPU, "it")
    return model, predict(model, encode(tokenizer, data.reported.examples, data.task, 64), data.task, 8, CPU)


@pytest.mark.slow
def test_it_learns_to_classify_and_the_seed_decides_everything(sample_teacher: Path, topics: TaskData) -> None:
    gold = [example.labels for example in topics.reported.examples]
    model, predictions = tuned(sample_teacher, topics, seed=0)
    assert topics.task.score(gold, predictions) == 1.0
    assert all(parameter.grad is None for parameter in model.parameters())  # none is carried into the next step
    again, _ = tuned(sample_teacher, topics, seed=0)
    other, _ = tuned(sample_teacher, topics, seed=1)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())


def test_it_learns_to_tag(sample_teacher: Path, entities: TaskData, capsys: pytest.CaptureFixture[str]) -> None:
    gold = [example.labels for example in entities.reported.examples]
    _, predictions = tuned(sample_teacher, entities, seed=0, how=replace(HOW, epochs=8))
    assert entities.reported.name == "dev"
    assert [len(p) for p in predictions] == [len(g) for g in gold]
    assert entities.task.score(gold, predictions) > 0.9
    assert capsys.readouterr().out == ""


def test_without_training_it_knows_nothing(sample_teacher: Path, topics: TaskData) -> None:
    """So that what the tests above see was learnt."""
    model, tokenizer = load_for_task(str(sample_teacher), topics.task, 0)
    predictions = predict(model, encode(tokenizer, topics.reported.examples, topics.task, 64), topics.task, 8, CPU)
    assert topics.task.score([e.labels for e in topics.reported.examples], predictions) < 0.7


def test_the_head_is_new_for_each_seed_and_the_body_the_models(sample_teacher: Path) -> None:
    one, two, three = (load_for_task(str(sample_teacher), find_task("afrisenti"), seed)[0] for seed in (0, 0, 1))
    saved = load_file(sample_teacher / "model.safetensors")
    for name, tensor in one.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, two.state_dict()[name])
        if name.startswith("roberta."):
            assert torch.equal(tensor, saved[name].float()), name
    assert not torch.equal(one.classifier.dense.weight, three.classifier.dense.weight)
    assert one.config.id2label == {0: "positive", 1: "neutral", 2: "negative"}


def test_only_the_first_token_of_each_word_has_its_label(sample_teacher: Path) -> None:
    task = find_task("masakhaner")
    _, tokenizer = load_for_task(str(sample_teacher), task, 0)
    words = ("Mukamanakazikazi", "yagiye", "i", "Kigali")
    example = Example(words, ("B-PER", "O", "O", "B-LOC"))
    encoded = encode(tokenizer, [example], task, 64)
    tokens = tokenizer.convert_ids_to_tokens(encoded.inputs[0]["input_ids"])
    assert [tokens[i][0] for i in encoded.positions[0]] == ["▁"] * 4 and len(tokens) > 6
    targets = torch.tensor(training_items(encoded, task)[0]["labels"])
    assert targets[encoded.positions[0]].tolist() == [task.labels.index(label) for label in example.labels]
    assert len(targets) == len(tokens) and (targets != IGNORED).sum() == 4


def by_hand(tokens: list[str], mark: str = "▁") -> Encoding:
    """The encoding of a text in these tokens, spaces marked, after a <s>; truncated if the text goes on."""
    merges = [(left, right) for token in tokens for left, right in parts_of(token)]
    symbols = dict.fromkeys([*"".join(tokens), *(left + right for left, right in merges)])
    vocab = {symbol: i for i, symbol in enumerate([*symbols, "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.Replace(" ", mark)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    encoding = tokenizer.encode("".join(tokens).replace(mark, " "))
    assert encoding.tokens == ["<s>", *tokens]
    return encoding


def parts_of(token: str) -> list[tuple[str, str]]:
    return [(token[:i], token[i]) for i in range(1, len(token))]


def test_a_token_belongs_to_the_word_that_it_begins_in() -> None:
    words = ["ab", "c", "de"]
    assert first_tokens(by_hand(["ab", "▁c", "▁de"]), words) == [1, 2, 3]
    assert first_tokens(by_hand(["a", "b", "▁", "c", "▁d", "e"]), words) == [1, 3, 5]  # ▁ alone begins the next word
    assert first_tokens(by_hand(["ab▁", "c▁", "de"]), words) == [1, 2, 3]
    assert first_tokens(by_hand(["ab▁c", "▁de"]), words) == [1, UNSEEN, 2]  # no token of its own
    assert first_tokens(by_hand(["ab", "▁c"]), words) == [1, 2, UNSEEN]  # beyond the longest input


@pytest.mark.parametrize("name", ["sample", "bytes"])
def test_words_are_read_as_in_running_text(name: str, sample_teacher: Path, sample_text: Path, tmp_path: Path) -> None:
    """With the mark of a beginning word, which byte-level tokenizers lose if they get the words one by one."""
    if name == "bytes":
        byte_pairs(tmp_path, sample_text)
    tokenizer = AutoTokenizer.from_pretrained(sample_teacher if name == "sample" else tmp_path)
    lines = [unicodedata.normalize("NFC", line) for line in sample_text.read_text(encoding="utf-8").splitlines()]
    task = find_task("masakhaner")
    examples = [Example(tuple(line.split()), ("O",) * len(line.split())) for line in lines]
    encoded = encode(tokenizer, examples, task, 512)
    assert encoded.unseen == encoded.truncated == 0
    for line, inputs, positions in zip(lines, encoded.inputs, encoded.positions, strict=True):
        text = " ".join(line.split())
        assert inputs["input_ids"] == tokenizer(text)["input_ids"]
        marks = [i for i, t in enumerate(tokenizer.convert_ids_to_tokens(inputs["input_ids"])) if t[0] in "▁Ġ"]
        assert positions == (marks if name == "sample" else [1, *marks])


def test_xlm_r_finds_the_words_where_it_did(sample_teacher: Path, sample_text: Path) -> None:
    """Its tokenizer marks every word, also those that it gets one by one: scores stay comparable."""
    tokenizer = AutoTokenizer.from_pretrained(sample_teacher)
    words = [unicodedata.normalize("NFC", line).split() for line in sample_text.read_text("utf-8").splitlines()]
    task = find_task("masakhaner")
    encoded = encode(tokenizer, [Example(tuple(row), ("O",) * len(row)) for row in words], task, 24)
    one_by_one = tokenizer(words, is_split_into_words=True, truncation=True, max_length=24)
    for row, positions in enumerate(encoded.positions):
        assert encoded.inputs[row]["input_ids"] == one_by_one["input_ids"][row]
        ids = one_by_one.word_ids(row)
        assert positions == [ids.index(word) if word in ids else UNSEEN for word in range(len(words[row]))]


@pytest.mark.parametrize(("name", "missing"), [("masakhaner", "O"), ("masakhapos", "_")])
def test_words_beyond_the_limit_are_counted_and_scored(sample_teacher: Path, name: str, missing: str) -> None:
    task = find_task(name)
    model, tokenizer = load_for_task(str(sample_teacher), task, 0)
    label = task.labels[1]
    examples = [Example(("Kigali",) * 20, (label,) * 20), Example(("Kigali",), (label,))]
    encoded = encode(tokenizer, examples, task, 8)
    lengths = [len(one["input_ids"]) for one in encoded.inputs]
    assert (encoded.truncated, max(lengths)) == (1, 8)
    seen = 20 - encoded.unseen
    assert 0 < seen <= 6 and encoded.inputs[0]["input_ids"][-1] == tokenizer.eos_token_id
    predictions = predict(model, encoded, task, 2, CPU)
    assert [len(one) for one in predictions] == [20, 1]
    assert predictions[0][seen:] == [missing] * (20 - seen)
    assert not training_items(encoded, task)[0]["labels"][-1] >= 0
    all_right = [[label] * seen + [missing] * (20 - seen), [label]]
    assert task.score([example.labels for example in examples], all_right) < 0.7


def test_texts_beyond_the_limit_are_counted(sample_teacher: Path) -> None:
    task = find_task("afrisenti")
    _, tokenizer = load_for_task(str(sample_teacher), task, 0)
    encoded = encode(tokenizer, [Example(("yego " * 30,), ("positive",)), Example(("yego",), ("positive",))], task, 8)
    assert (encoded.truncated, encoded.unseen) == (1, 0)
    assert len(encoded.inputs[0]["input_ids"]) == 8 > len(encoded.inputs[1]["input_ids"])


def test_padding_changes_no_prediction(sample_teacher: Path, entities: TaskData) -> None:
    model, tokenizer = load_for_task(str(sample_teacher), entities.task, 3)
    examples = [*entities.reported.examples, Example(("Yego",) * 40, ("O",) * 40)]
    encoded = encode(tokenizer, examples, entities.task, 64)
    alone = predict(model, encoded, entities.task, 1, CPU)
    assert predict(model, encoded, entities.task, 9, CPU) == alone
    assert len({label for one in alone for label in one}) > 1


def test_the_learning_rate_rises_for_narrow_models() -> None:
    for tagging in (False, True):
        assert default_learning_rate(1024, tagging) == 2e-5
        assert default_learning_rate(256, tagging) == pytest.approx(3.2e-4)
    assert (default_learning_rate(64, tagging=False), default_learning_rate(64, tagging=True)) == (5e-4, 1e-3)


def test_the_positions_bound_the_input(sample_teacher: Path) -> None:
    assert max_positions(load_for_task(str(sample_teacher), find_task("sib200"), 0)[0].config) == 512


def test_a_loss_that_is_not_finite_stops_the_run(sample_teacher: Path, topics: TaskData) -> None:
    with pytest.raises(
        CometError, match=r"it, seed 0: the loss is (nan|inf) at step \d+ of 18; give a --learning-rate"
    ):
        tuned(sample_teacher, topics, 0, replace(HOW, learning_rate=1e30))


def test_a_body_with_missing_parts_is_refused(sample_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(sample_teacher, folder)
    tensors = load_file(folder / "model.safetensors")
    gone = "roberta.encoder.layer.1.output.dense.weight"
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CometError, match=rf"broken: its weights lack {gone}, which would be random"):
        load_for_task(str(folder), find_task("sib200"), 0)


def test_a_tokenizer_of_another_model_is_refused(sample_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_teacher, tmp_path / "small")
    model = AutoModelForMaskedLM.from_pretrained(sample_teacher)
    model.resize_token_embeddings(7000)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(CometError) as caught:
        load_for_task(str(tmp_path / "small"), find_task("sib200"), 0)
    assert str(caught.value) == (
        f"--model {tmp_path / 'small'}: its tokenizer has ids for 8000 tokens, but the model embeds only 7000; "
        "tokenizer and model do not belong together"
    )


def test_a_model_with_a_head_already_is_refused(sample_teacher: Path, tmp_path: Path) -> None:
    task = find_task("sib200")
    model, tokenizer = load_for_task(str(sample_teacher), task, 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CometError, match="has been fine-tuned for a task already; expected a masked LM"):
        load_for_task(str(tmp_path), task, 0)


def test_what_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CometError, match=rf"--model {tmp_path}: cannot be loaded; expected a masked LM") as caught:
        load_for_task(str(tmp_path), find_task("sib200"), 0)
    assert caught.value.exit_code == 2
    with pytest.raises(CometError, match=r"--model \S+nowhere: cannot be loaded: no such folder, and not a name on"):
        load_for_task(str(tmp_path / "nowhere"), find_task("sib200"), 0)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_names_the_option(
    error: RuntimeError, sample_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_task(find_task("sib200"), "kin", write_topics(tmp_path / "kin"))
    model, tokenizer = load_for_task(str(sample_teacher), data.task, 0)

    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.nn.Linear, "forward", full)
    encoded = encode(tokenizer, data.train.examples, data.task, 64)
    with pytest.raises(CometError, match=r"it, seed 0: out of memory with batches of 4 on cpu; give a smaller --batch"):
        fine_tune(model, encoded, data.task, FineTuning(1, 4, 1e-4), 0, CPU, "it")
