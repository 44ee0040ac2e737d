"""Trimmed vocabularies: what is kept, how text is cut, and that the student is asked for exactly the right thing."""

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.students import NANO
from huggingface_hub.repocard import metadata_load
from tokenizers import Tokenizer, models
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache, build_cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.settings import StudentConfig
from comet.student.model import earlier_student, new_student
from comet.student.trimming import trimmed_state
from comet.student.vocabulary import full_vocabulary, student_tokenizer, trimmed_vocabulary
from comet.train.dataset import collate, in_vocabulary, shards_of, teacher_mass_outside
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT

TWEETS = ["Ndagukunda cyane 😂😂🔥 #Rwanda", "The weather is nice today, thank you!", "ibyo byose ni ukuri 100%", ""]


@pytest.fixture(scope="module")
def narrow(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of some of the sentences only, so that many pieces are outside."""
    folder = tmp_path_factory.mktemp("narrow")
    lines = Path(settings.text[0]).read_text(encoding="utf-8").splitlines()[:60]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return build_cache(replace(settings, out=folder / "kin.zarr", text=(str(folder / "text.txt"),)))


def test_what_a_trimmed_vocabulary_keeps(narrow: Cache) -> None:
    vocabulary, recipe = trimmed_vocabulary([narrow]), narrow.recipe
    kept = set(vocabulary.teacher_id.tolist())
    assert set(narrow.vocabulary.id.tolist()) | set(recipe.special_ids) <= kept
    tokenizer = load_tokenizer(narrow.tokenizer_folder)
    single = {i for piece, i in tokenizer.get_vocab().items() if len(piece) == 1}
    assert single <= kept
    assert len(kept) <= len(narrow.vocabulary.id) + len(recipe.special_ids) + len(single) + 1
    assert len(vocabulary) < recipe.vocab_size / 2
    assert vocabulary.student_id[recipe.pad_id] == 1, "positions of XLM-R count from it"
    assert (vocabulary.unscored.sum() + len(narrow.vocabulary.id)) == len(vocabulary)
    assert not full_vocabulary(recipe).unscored.any()


def test_text_of_the_corpus_is_cut_as_before(narrow: Cache, settings: BuildSettings) -> None:
    vocabulary = trimmed_vocabulary([narrow])
    whole, trimmed = load_tokenizer(narrow.tokenizer_folder), student_tokenizer(narrow, vocabulary)
    same = 0
    for line in Path(settings.text[0]).read_text(encoding="utf-8").splitlines():
        before = whole.tokenize(line)
        if (vocabulary.student_id[whole.convert_tokens_to_ids(before)] >= 0).all():
            assert trimmed.tokenize(line) == before
            expected = vocabulary.student_id[torch.tensor(whole(line)["input_ids"])].tolist()
            assert trimmed(line)["input_ids"] == expected
            same += 1
    assert same >= 60


def test_other_text_is_cut_into_smaller_tokens_not_made_unknown(narrow: Cache, settings: BuildSettings) -> None:
    vocabulary = trimmed_vocabulary([narrow])
    whole, trimmed = load_tokenizer(narrow.tokenizer_folder), student_tokenizer(narrow, vocabulary)
    texts = TWEETS + Path(settings.text[0]).read_text(encoding="utf-8").splitlines()[60:]
    smaller = 0
    for text in texts:
        before, after = whole(text)["input_ids"], trimmed(text)["input_ids"]
        assert after.count(trimmed.unk_token_id) == before.count(whole.unk_token_id), text
        if trimmed.unk_token_id not in after:
            assert trimmed.decode(after, skip_special_tokens=True) == whole.decode(before, skip_special_tokens=True)
        smaller += len(after) > len(before)
    assert smaller > 100


def test_the_saved_tokenizer_is_an_ordinary_one(narrow: Cache, tmp_path: Path) -> None:
    vocabulary = trimmed_vocabulary([narrow])
    trimmed = student_tokenizer(narrow, vocabulary)
    trimmed.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.is_fast
    assert len(again) == len(vocabulary)
    for text in TWEETS:
        assert again(text)["input_ids"] == trimmed(text)["input_ids"]
    assert again.mask_token_id == vocabulary.student_id[narrow.recipe.mask_id]


@pytest.mark.parametrize("keep", ["topk", "threshold"])
def test_the_loss_is_that_of_a_teacher_conditioned_on_the_corpus(
    narrow: Cache, settings: BuildSettings, tmp_path: Path, keep: str
) -> None:
    """Kept tokens outside the corpus are left out, and so is what the student would give them."""
    cache = narrow
    if keep == "threshold":
        text = (str(narrow.root.parent / "text.txt"),)
        cache = build_cache(replace(settings, out=tmp_path / "t.zarr", text=text, keep="threshold"))
    vocabulary = trimmed_vocabulary([cache])
    shard = shards_of([cache], "validation")[0]
    arrays = {name: array.copy() for name, array in cache.read_shard("validation", shard.index).items()}
    plain = collate(arrays, cache.recipe)
    batch = in_vocabulary(plain, vocabulary, cache.recipe)
    assert (vocabulary.teacher_id[batch["target_id"]] == plain["target_id"].numpy()).all()
    assert (vocabulary.teacher_id[batch["input_ids"]] == plain["input_ids"].numpy()).all()
    ids, values, others = ("topk_id", "topk_logprob", "tail_logmass")
    if keep == "threshold":
        ids, values, others = ("sample_id", "sample_logweight", "entropy")
    seen = torch.from_numpy(np.isin(plain[ids].numpy(), cache.vocabulary.id))
    assert ((batch[ids] >= 0) == seen).all()
    assert (batch[values][~seen] == -torch.inf).all()
    assert torch.equal(batch[others], plain[f"{others}_seen"])
    assert not torch.equal(plain[others], plain[f"{others}_seen"])
    torch.testing.assert_close(batch[values][seen], plain[values][seen])
    student = new_student(NANO, [cache], vocabulary, dropout=0.0, seed=0)
    distiller = Distiller(student, cache.recipe, DEFAULT, vocabulary).eval()
    with torch.no_grad():
        features, _ = distiller.features(batch)
        found = distiller.logits(features, batch, 1.0)
        logits = student.lm_head.decoder(features).masked_fill(vocabulary.unscored, -torch.inf)
    asked = logits.logsumexp(1)
    torch.testing.assert_close(torch.logaddexp(found.kept.logsumexp(1), found.rest), asked, rtol=1e-5, atol=1e-5)
    assert (
        vocabulary.scored_id[0][torch.from_numpy(vocabulary.teacher_id)][distiller.best_token(features)[0]] >= 0
    ).all()


def test_the_mass_outside_is_what_the_cache_says(narrow: Cache) -> None:
    shards = shards_of([narrow], "validation")
    arrays = narrow.read_shard("validation", 0)
    one = narrow.recipe.temperatures.index(1.0)
    inside = []
    for row, slot in np.argwhere(arrays["target_position"] != 65535):
        seen = np.isin(arrays["topk_id"][row, slot], narrow.vocabulary.id)
        kept = np.exp(arrays["topk_logprob"][row, slot].astype(np.float64))[seen].sum()
        inside.append(kept + np.exp(float(arrays["tail_logmass_seen"][row, slot, one])))
    found = teacher_mass_outside(shards[:1], trimmed_vocabulary([narrow]))
    assert found == pytest.approx(1 - np.mean(inside), abs=1e-6)
    assert 0.01 < found < 0.9


def test_the_mass_outside_is_estimated_from_a_sample(narrow: Cache, settings: BuildSettings, tmp_path: Path) -> None:
    text = (str(narrow.root.parent / "text.txt"),)
    sampled = build_cache(replace(settings, out=tmp_path / "t.zarr", text=text, keep="threshold", top_k=64))
    vocabulary = trimmed_vocabulary([narrow])
    exact, estimate = (teacher_mass_outside(shards_of([c], "train"), vocabulary) for c in (narrow, sampled))
    assert exact is not None and estimate is not None
    assert estimate == pytest.approx(exact, rel=0.03)


def test_a_trimmed_vocabulary_gives_an_ordinary_student(narrow: Cache, tmp_path: Path) -> None:
    said: list[str] = []
    config = StudentConfig(tmp_path / "student", student="nano", vocabulary="trimmed", steps=20, batch_size=8)
    result = distill([narrow], config, say=said.append)
    assert f"vocabulary: {len(result.vocabulary):,} of the teacher's 8,000 tokens: all that the corpus" in said[0]
    assert result.after.kl < result.before.kl
    model = AutoModelForMaskedLM.from_pretrained(config.output)
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    assert model.config.vocab_size == len(tokenizer) == len(result.vocabulary)
    ids = tokenizer(f"Ndagukunda {tokenizer.mask_token}.", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert "tokens of the corpus" in (config.output / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_going_on_with_an_earlier_student(narrow: Cache, tmp_path: Path) -> None:
    first = StudentConfig(tmp_path / "first", student="nano", vocabulary="trimmed", steps=20, batch_size=8)
    one = distill([narrow], first)
    second = StudentConfig(tmp_path / "second", vocabulary="trimmed", init=str(first.output), steps=5, batch_size=8)
    two = distill([narrow], second)
    assert two.before.kl == pytest.approx(one.after.kl, rel=1e-5)
    of_one, of_two = (metadata_load(student / "README.md")["license"] for student in (first.output, second.output))
    assert of_one == of_two, "weights of the teacher's stay under its licence"
    assert (two.shape.layers, two.shape.hidden) == (one.shape.layers, one.shape.hidden)
    with pytest.raises(
        CometError,
        match=r"--init .*first: its vocabulary of [\d,]+ tokens is not that of this training \(8,000\): "
        r"[\d,]+ tokens differ, the first '.+' with id (\d+|None) against \d+; give the --vocabulary",
    ):
        earlier_student(first.output, [narrow], full_vocabulary(narrow.recipe), 0.0)
    with pytest.raises(CometError, match=r"--student tiny: but --init .* is first \("):
        distill([narrow], replace(second, student="tiny", output=tmp_path / "third"))
    with pytest.raises(CometError, match=r"--init nowhere: expected start, cache, random, or the folder of a student"):
        distill([narrow], replace(second, init="nowhere", output=tmp_path / "third"))
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_a_random_start_is_farther_away(narrow: Cache, tmp_path: Path) -> None:
    begun = [
        distill([narrow], StudentConfig(tmp_path / init, student="nano", init=init, steps=1)).before.kl
        for init in ("cache", "random")
    ]
    assert begun[0] < begun[1]


def test_tokens_that_no_training_lowers_are_improbable_from_random_weights(narrow: Cache) -> None:
    """No step reaches them, so that they would keep a quarter of the mass of a student whose other logits fall."""
    vocabulary = trimmed_vocabulary([narrow])
    student = new_student(NANO, [narrow], vocabulary, 0.0, 0, "random").eval()
    with torch.no_grad():
        probability = student(torch.arange(20)[None]).logits[0].softmax(-1)  # [20, V']
    unscored = vocabulary.unscored[0]
    occurrences = narrow.vocabulary.count.sum()
    share = unscored.sum() / (occurrences * (~unscored).sum())
    assert (probability[:, unscored].sum(1) < 3 * share).all()


def test_word_pieces_are_trimmed() -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##ed", "p", "##l"]
    word = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    word.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    state = json.loads(word.to_str())
    student_id = [0, 1, 2, 3, 4, 5, 6, -1, 7, 8]
    trimmed = Tokenizer.from_str(json.dumps(trimmed_state(state, student_id)))
    assert trimmed.encode("playing").tokens == word.encode("playing").tokens == ["play", "##ing"]
    assert trimmed.encode("playing").ids == [5, 6]
    assert trimmed.encode("played").tokens == ["[UNK]"]
    assert trimmed.token_to_id("##ed") is None


def test_other_files_beside_a_tokenizer_are_not_read(narrow: Cache, tmp_path: Path) -> None:
    """transformers would: they are in no ledger."""
    root = Path(shutil.copytree(narrow.root, tmp_path / "kin.zarr"))
    others = {
        "added_tokens.json": {"evil": 3},
        "special_tokens_map.json": {"mask_token": "evil"},
        "config.json": {"model_type": "bert", "auto_map": {"AutoTokenizer": "evil.Evil"}},
    }
    for name, content in others.items():
        (root / "tokenizer" / name).write_text(json.dumps(content))
    (root / "tokenizer/chat_template.jinja").write_text("evil")
    (root / "tokenizer/evil.py").write_text("raise SystemExit")
    cache = open_cache(root)
    tokenizer = student_tokenizer(cache, full_vocabulary(cache.recipe))
    assert tokenizer.get_vocab() == load_tokenizer(narrow.tokenizer_folder).get_vocab()
    assert (tokenizer.mask_token, tokenizer.chat_template, len(tokenizer)) == ("<mask>", None, 8000)


def test_other_kinds_are_refused(narrow: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"model": {"type": "WordLevel", "vocab": {}}}
    monkeypatch.setattr("comet.student.vocabulary.read_tokenizer", lambda _: kind)
    expected = r"--vocabulary trimmed: expected a Unigram, WordPiece or BPE tokenizer, found WordLevel, of which it is"
    with pytest.raises(CometError, match=expected):
        trimmed_vocabulary([open_cache(narrow.root)])


@pytest.mark.slow
def test_the_real_vocabulary_can_be_trimmed(shared: Path, tmp_path: Path) -> None:
    """XLM-R's own tokenizer: 250,002 pieces, <mask> the last of them."""
    source = shared / "data/xlm-roberta-tokenizer"
    (tmp_path / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    shutil.copyfile(source / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    whole = AutoTokenizer.from_pretrained(tmp_path)
    lines = lzma.decompress((shared / "data/text/kin.txt.xz").read_bytes()).decode().splitlines()
    ids = sorted({i for line in lines[:3000] for i in whole(line, add_special_tokens=False)["input_ids"]} - {3})
    fake = FakeCache(tmp_path, np.array(ids), whole)
    vocabulary = trimmed_vocabulary([fake])  # type: ignore[list-item]
    trimmed = student_tokenizer(fake, vocabulary)  # type: ignore[arg-type]
    assert len(trimmed) == len(vocabulary) < 40_000
    for line in [*lines[:3000], *lines[-500:], *TWEETS]:
        before, after = whole(line)["input_ids"], trimmed(line)["input_ids"]
        if (vocabulary.student_id[torch.tensor(before)] >= 0).all():
            assert after == vocabulary.student_id[torch.tensor(before)].tolist(), line
        assert after.count(3) == before.count(3), line


class FakeCache:
    """As much of a cache as a vocabulary is trimmed by."""

    def __init__(self, folder: Path, seen: np.ndarray, tokenizer: object) -> None:
        self.tokenizer_folder = folder
        self.vocabulary = SimpleNamespace(id=seen)
        special = tuple(tokenizer.all_special_ids)  # type: ignore[attr-defined]
        self.recipe = SimpleNamespace(
            seq_len=128, special_ids=special, vocab_size=250_002, bos_id=0, pad_id=1, eos_id=2, mask_id=250_001
        )
