"""One trimmed student for several caches: each target is asked over the tokens of its own cache's corpus."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.students import NANO
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache, build_cache
from cache_tools.settings import BuildSettings
from comet.distillation import distill
from comet.report.analysis import analyse
from comet.report.summary import summary
from comet.settings import Distilled, StudentConfig
from comet.student.model import new_student
from comet.student.vocabulary import StudentVocabulary, student_tokenizer, trimmed_vocabulary
from comet.train.dataset import CacheRows, arrays_to_read, shards_of, student_collator, teacher_mass_outside
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.signals import Batch


@pytest.fixture(scope="module", params=["threshold", "topk"])
def corpora(
    settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> list[Cache]:
    """Three caches of different sentences, so that each lacks tokens of the others."""
    lines = Path(settings.text[0]).read_text(encoding="utf-8").splitlines()
    folder = tmp_path_factory.mktemp("corpora")
    caches = []
    for name, part, language in (("a", lines[:70], "kin"), ("b", lines[70:170], "swa"), ("c", lines[170:260], "hau")):
        text = folder / f"{name}.txt"
        text.write_text("\n".join(part), encoding="utf-8")
        out = folder / f"{name}.zarr"
        caches.append(build_cache(replace(settings, out=out, text=(str(text),), language=language, keep=request.param)))
    return caches


def alone(vocabulary: StudentVocabulary, corpus: int) -> StudentVocabulary:
    """The same tokens, scored as if there were only this corpus."""
    assert vocabulary.scored is not None
    return replace(vocabulary, scored=vocabulary.scored[[corpus]])


def batch_of(caches: list[Cache], rows: list[int], vocabulary: StudentVocabulary) -> Batch:
    recipe = caches[0].recipe
    arrays = CacheRows(shards_of(caches, "train"), arrays_to_read(recipe, True)).__getitems__(rows)
    return student_collator(recipe, vocabulary)(arrays)


def test_the_vocabulary_is_the_union(corpora: list[Cache]) -> None:
    vocabulary, recipe = trimmed_vocabulary(corpora), corpora[0].recipe
    seen = [set(cache.vocabulary.id.tolist()) for cache in corpora]
    assert all(seen[i] - seen[j] for i in range(3) for j in range(3) if i != j)
    assert set.union(*seen) | set(recipe.special_ids) <= set(vocabulary.teacher_id.tolist())
    singles = [set(trimmed_vocabulary([cache]).teacher_id.tolist()) for cache in corpora]
    assert set(vocabulary.teacher_id.tolist()) == set.union(*singles)
    assert vocabulary.unscored.shape == (3, len(vocabulary))
    assert [len(vocabulary) - len(one) for one in seen] == vocabulary.unscored.sum(1).tolist()
    whole = student_tokenizer(corpora[0], vocabulary)
    assert len(whole) == len(vocabulary)


def test_a_mixed_batch_is_its_parts_each_over_its_own_corpus(corpora: list[Cache]) -> None:
    """Loss and gradients, best tokens and KL, against distillers that know one corpus each."""
    vocabulary, recipe = trimmed_vocabulary(corpora), corpora[0].recipe
    starts = np.cumsum([0, *(cache.recipe.train_rows for cache in corpora)])
    rows = [int(start) + i for i in range(3) for start in starts[:3]]  # in turn
    student = new_student(NANO, corpora, vocabulary, dropout=0.0, seed=0)
    mixed = batch_of(corpora, rows, vocabulary)
    assert set(mixed["target_corpus"].tolist()) == {0, 1, 2}
    found = Distiller(student, recipe, DEFAULT, vocabulary)
    targets = len(mixed["target_id"])
    found(**mixed)["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    evaluated = found.evaluate(mixed)
    student.zero_grad()
    for number in range(3):
        of_one = batch_of(corpora, [row for row in rows if starts[number] <= row < starts[number + 1]], vocabulary)
        single = alone(vocabulary, number)
        distiller = Distiller(student, recipe, DEFAULT, single)
        parts = distiller(targets=targets, rows=len(rows), **of_one)
        parts["loss"].backward()
        mine = mixed["target_corpus"] == number
        expected = distiller.evaluate(of_one)
        for name in ("kl", "cross_entropy", "confidence", "best", "teacher_best"):
            torch.testing.assert_close(
                getattr(evaluated, name)[mine], getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name
            )
        assert not single.unscored[0][evaluated.best[mine]].any()
    for name, parameter in student.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_corpus_of_a_row_is_that_of_its_cache(corpora: list[Cache]) -> None:
    shards = shards_of(corpora, "train")
    rows = CacheRows(shards, ("length",))
    expected = [corpus for corpus, cache in enumerate(corpora) for _ in range(cache.recipe.train_rows)]
    assert rows.__getitems__(range(len(rows)))["corpus"].tolist() == expected
    assert rows.__getitems__([len(rows) - 1, 0])["corpus"].tolist() == [2, 0]
    assert rows.__getitems__([])["corpus"].tolist() == []


def test_targets_of_an_unknown_corpus_are_refused(corpora: list[Cache]) -> None:
    vocabulary = trimmed_vocabulary(corpora)
    with pytest.raises(ValueError, match="3 corpora: expected that of each target"):
        vocabulary.scored_ids(torch.tensor([5]))


def test_the_mass_outside_is_each_corpus_s_own(corpora: list[Cache]) -> None:
    vocabulary = trimmed_vocabulary(corpora)
    whole = teacher_mass_outside(shards_of(corpora, "validation"), vocabulary)
    parts, targets = [], []
    for number, cache in enumerate(corpora):
        parts.append(teacher_mass_outside(shards_of([cache], "validation"), alone(vocabulary, number)))
        positions = [cache.read_shard("validation", i)["target_position"] for i in cache.extent.indices("validation")]
        targets.append(sum(int((position != 65535).sum()) for position in positions))
    assert whole == pytest.approx(np.average(parts, weights=targets), rel=1e-5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(corpora: list[Cache], tmp_path_factory: pytest.TempPathFactory) -> tuple[Distilled, list[str]]:
    output, said = tmp_path_factory.mktemp("students") / "one", []
    result = distill(corpora, StudentConfig(output, student="nano", steps=30, batch_size=8), said.append)
    return result, [*said, summary(corpora, DEFAULT, result)]


def test_one_student_of_all_languages(
    corpora: list[Cache], trained: tuple[Distilled, list[str]], settings: BuildSettings
) -> None:
    said, output = trained[1], trained[0].output
    assert "all that the 3 corpora use, each target over those of its own, and those that spell" in said[0]
    begun = next(line for line in said if line.startswith("it begins with"))
    assert begun.endswith("cut to width 36 in the components of the texts of a.zarr, b.zarr, c.zarr together")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert model.config.vocab_size == len(tokenizer) < corpora[0].recipe.vocab_size
    whole = AutoTokenizer.from_pretrained(settings.teacher)
    for line in Path(settings.text[0]).read_text(encoding="utf-8").splitlines()[:260]:
        assert tokenizer.tokenize(line) == whole.tokenize(line)


def test_the_student_is_measured_by_language(trained: tuple[Distilled, list[str]]) -> None:
    """Each cache has its own line everywhere, and together they are the whole."""
    result, said = trained
    names = ["Kinyarwanda (a.zarr)", "Swahili (b.zarr)", "Hausa (c.zarr)"]
    pages = [(result.output / "README.md"), result.output.with_name("one.html")]
    for text in (said[-1], *(page.read_text(encoding="utf-8") for page in pages)):
        for name, found in zip(names, result.of_each_cache.values(), strict=True):
            line = next(line for line in text.splitlines() if name in line)
            assert all(figure in line for figure in (f"{found.targets:,}", f"{found.kl:.3f}", f"{found.accuracy:.1%}"))
    targets = [found.targets for found in result.of_each_cache.values()]
    assert sum(targets) == result.after.targets
    for name in ("kl", "accuracy", "agreement", "cross_entropy"):
        parts = [getattr(found, name) for found in result.of_each_cache.values()]
        assert np.average(parts, weights=targets) == pytest.approx(getattr(result.after, name), rel=1e-5)


def test_the_page_looks_at_targets_of_every_cache(corpora: list[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, recipe = trimmed_vocabulary(corpora), corpora[0].recipe
    distiller = Distiller(new_student(NANO, corpora, vocabulary, 0.0, seed=0), recipe, DEFAULT, vocabulary)
    collator, tokenizer = student_collator(recipe, vocabulary), student_tokenizer(corpora[0], vocabulary)
    counts, cpu, shards = (
        np.ones(len(vocabulary), dtype=np.int64),
        torch.device("cpu"),
        shards_of(corpora, "validation"),
    )
    monkeypatch.setattr("comet.report.analysis.MOST_TARGETS", 3 * 20)
    together = analyse(distiller, shards, tokenizer, counts, cpu, collator)
    alone = [
        analyse(distiller, [s for s in shards if s.corpus == corpus], tokenizer, counts, cpu, collator).target_id[:20]
        for corpus in range(3)
    ]
    np.testing.assert_array_equal(together.target_id, np.concatenate(alone))


def test_the_card_has_a_table_of_the_caches(trained: tuple[Distilled, list[str]]) -> None:
    lines = (trained[0].output / "README.md").read_text(encoding="utf-8").splitlines()
    head = lines.index("| cache | targets | KL, nats | accuracy | teacher's accuracy | same best token |")
    assert (lines[head - 1], lines[head + 1], lines[head + 5]) == ("", 6 * "|---" + "|", "")
    assert [line.count("|") for line in lines[head + 2 : head + 5]] == [7, 7, 7]
    assert not any("\\|" in line for line in lines[head : head + 5])


def test_the_student_before_and_after_is_that_of_the_trained(trained: tuple[Distilled, list[str]]) -> None:
    result, said = trained
    before, after = result.row_before, result.row_after
    assert (before.tokens, before.targets) == (after.tokens, after.targets)
    for one, other in zip(before.positions, after.positions, strict=True):
        assert (one.label, one.teacher) == (other.label, other.teacher)
        assert one.student != other.student
    lines = said[-1].splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("a validation row")) + 2 :]
    best = after.positions[0].student[0]
    assert table[0].endswith(f"{best.text.strip('▁')} {best.probability:.0%}")


def test_a_single_cache_has_no_line_of_its_own(corpora: list[Cache], tmp_path: Path) -> None:
    result = distill(corpora[:1], StudentConfig(tmp_path / "one", student="nano", steps=2, batch_size=8))
    assert result.of_each_cache == {}
    assert "(a.zarr)" not in summary(corpora[:1], DEFAULT, result)
