"""What a training step queues on a device: nothing that waits or crosses devices. On a device without numbers."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from helpers.device_discipline import DEVICE, OnTheWrongDevice, Waits, disciplined
from helpers.students import NANO
from transformers import TrainingArguments

from cache_tools import Cache
from comet.student.model import new_student
from comet.student.vocabulary import StudentVocabulary, full_vocabulary, trimmed_vocabulary
from comet.train.dataset import CacheRows, arrays_to_read, shards_of, student_collator
from comet.train.distiller import Distiller
from comet.train.losses import ATTENTION_LOSSES
from comet.train.objective import DEFAULT, Objective
from comet.train.trainer import DistillationTrainer
from comet.train.validation import validation_rows

EVERYTHING = replace(DEFAULT, hard_weight=0.2, attention_weight=0.4)


def distiller_on_the_device(cache: Cache, objective: Objective, vocabulary: StudentVocabulary) -> Distiller:
    student = new_student(NANO, [cache], vocabulary, dropout=0.1, seed=0)
    return Distiller(student, cache.recipe, objective, vocabulary).train().to(DEVICE)


def batch_on_the_device(cache: Cache, vocabulary: StudentVocabulary) -> dict[str, torch.Tensor]:
    rows = CacheRows(shards_of([cache], "train"), arrays_to_read(cache.recipe, True, vocabulary.trimmed))
    batch = student_collator(cache.recipe, vocabulary)(rows.__getitems__([0, 5, 9]))
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES)
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_step_only_queues_work_on_one_device(of_each_family: Cache, attention_loss: str, trimmed: bool) -> None:
    cache = of_each_family
    vocabulary = trimmed_vocabulary([cache]) if trimmed else full_vocabulary(cache.recipe)
    objective = replace(EVERYTHING, attention_loss=attention_loss)
    distiller, batch = distiller_on_the_device(cache, objective, vocabulary), batch_on_the_device(cache, vocabulary)
    with disciplined():
        losses = distiller(**batch)
        losses["loss"].backward()
    assert set(losses) == {"loss", "kd", "hard", "attention"}
    assert {p.grad.device for p in distiller.parameters() if p.grad is not None} == {DEVICE}


def test_a_batch_is_measured_without_a_wait(of_each_family: Cache) -> None:
    vocabulary = full_vocabulary(of_each_family.recipe)
    distiller = distiller_on_the_device(of_each_family, EVERYTHING, vocabulary)
    batch = batch_on_the_device(of_each_family, vocabulary)
    with disciplined():
        found = distiller.evaluate(batch)
    assert {tensor.device for tensor in vars(found).values()} == {DEVICE}


def test_a_step_from_a_sample_does_too(threshold_cache: Cache) -> None:
    vocabulary = full_vocabulary(threshold_cache.recipe)
    distiller = distiller_on_the_device(threshold_cache, EVERYTHING, vocabulary)
    batch = batch_on_the_device(threshold_cache, vocabulary)
    with disciplined():
        distiller(**batch)["loss"].backward()
    assert {p.grad.device for p in distiller.parameters() if p.grad is not None} == {DEVICE}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_batches_are_copied_while_the_device_works(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """From pinned memory, which only a GPU has a use for."""
    vocabulary = full_vocabulary(cache.recipe)
    distiller = Distiller(new_student(NANO, [cache], vocabulary, dropout=0.1, seed=0), cache.recipe, EVERYTHING)
    rows = CacheRows(shards_of([cache], "train"), arrays_to_read(cache.recipe, True, False))
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none")
    arguments.dataloader_pin_memory = True  # which `use_cpu` has switched off
    trainer = DistillationTrainer(distiller, arguments, rows, validation_rows(shards_of([cache], "validation")))
    monkeypatch.setattr(TrainingArguments, "device", DEVICE)
    with disciplined():
        first = list(islice(trainer.get_train_dataloader(), 2))
    rows.expect([])
    assert {tensor.device for batch in first for tensor in batch.values()} == {DEVICE}


@pytest.mark.parametrize(("fault", "error"), [("waits", Waits), ("left behind", OnTheWrongDevice)])
def test_faults_are_noticed(cache: Cache, fault: str, error: type[AssertionError]) -> None:
    vocabulary = full_vocabulary(cache.recipe)
    distiller, batch = distiller_on_the_device(cache, EVERYTHING, vocabulary), batch_on_the_device(cache, vocabulary)
    whole = distiller.logit_loss

    def faulty(*arguments):
        loss = whole(*arguments)
        return loss * loss.max().item() if fault == "waits" else loss + torch.zeros(loss.shape)

    distiller.logit_loss = faulty
    with disciplined(), pytest.raises(error):
        distiller(**batch)
