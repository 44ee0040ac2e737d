"""DistillationTrainer inside transformers' Trainer: the order of rows, what is logged, what is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.students import NANO
from transformers import XLMRobertaForMaskedLM

from cache_tools import Cache
from cache_tools.errors import CometError
from comet.distillation import distill, enough_memory
from comet.preparation import training_arguments
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import CacheRows, shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.sampler import ShardShuffleSampler
from comet.train.trainer import DistillationTrainer
from comet.train.validation import validate, validation_rows


@pytest.fixture
def trainer(cache: Cache, tmp_path: Path) -> DistillationTrainer:
    shape = NANO
    config = StudentConfig(tmp_path / "student", steps=4, batch_size=8, arguments=(("logging_steps", 2),))
    distiller = Distiller(
        new_student(shape, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0), cache.recipe, DEFAULT
    )
    rows = CacheRows(shards_of([cache], "train"), cache.extent.arrays)
    arguments = training_arguments(config, shape)
    arguments.output_dir = str(tmp_path)
    return DistillationTrainer(distiller, arguments, rows, validation_rows(shards_of([cache], "validation")))


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_rows_of_an_epoch_come_in_the_sampler_s_order(trainer: DistillationTrainer, epoch: int) -> None:
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    rows = trainer.train_dataset
    expected = ShardShuffleSampler([shard.rows for shard in rows.shards], seed=0)
    expected.set_epoch(epoch)
    order = list(expected)
    for step, batch in enumerate(loader):
        stored = rows.__getitems__(order[step * 8 : (step + 1) * 8])["input_ids"]
        np.testing.assert_array_equal(batch["input_ids"].numpy(), stored[:, : batch["input_ids"].shape[1]])


def test_every_part_of_the_loss_is_logged(trainer: DistillationTrainer) -> None:
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["loss"] == pytest.approx(line["kd"] + DEFAULT.attention_weight * line["attention"], rel=1e-3)


def test_tokens_per_second_do_not_count_what_comes_before_training(trainer: DistillationTrainer) -> None:
    trainer.logged_at -= 3600  # as if it had been made an hour ago
    trainer.train()
    assert all(line["tokens_per_second"] > 10 for line in trainer.state.log_history if "loss" in line)


def test_evaluate_measures_the_validation_rows(trainer: DistillationTrainer, cache: Cache) -> None:
    metrics = trainer.evaluate()
    targets = sum(
        (cache.read_shard("validation", s)["target_id"] >= 0).sum() for s in cache.extent.indices("validation")
    )
    assert metrics["eval_targets"] == targets
    assert 0 < metrics["eval_kl"] < metrics["eval_cross_entropy"]
    assert trainer.model.training or trainer.state.global_step == 0


@pytest.mark.slow
def test_the_student_is_the_one_that_was_nearest(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate so high that later epochs are worse, the weights saved are those of the best epoch."""
    config = StudentConfig(tmp_path / "student", vocabulary="full", init="cache", epochs=8, learning_rate=0.02)
    result = distill([cache], config)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    measured = [float(line.split("KL ")[1].split(",")[0]) for line in lines]
    assert len(measured) == measured.index(min(measured)) + 4, "it stops three epochs after the best"
    assert result.after.kl == pytest.approx(min(measured), abs=1e-3)
    assert result.best_step < result.steps
    saved = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "student")
    rows = validation_rows(shards_of([cache], "validation"))
    again = validate(Distiller(saved, cache.recipe, DEFAULT), rows, 32, torch.device("cpu"))
    assert again.kl == pytest.approx(result.after.kl, rel=1e-5)


def test_of_labels_alone_the_student_with_the_lowest_masked_token_loss_is_kept(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = replace(DEFAULT, kd_weight=0.0, hard_weight=1.0, attention_weight=0.0)
    result = distill([cache], StudentConfig(tmp_path / "student", objective=labels, steps=8, validate_steps=4))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    kl, loss = ([float(line.split(name)[1].split(",")[0]) for line in lines] for name in ("KL ", "masked-token loss "))
    assert kl[1] > kl[0] and loss[1] < loss[0], "away from the teacher, towards the labels"
    assert result.best_step == 8
    assert result.after.cross_entropy == pytest.approx(loss[1], abs=1e-3)


@pytest.mark.slow
def test_a_training_that_diverges_leaves_no_student(cache: Cache, tmp_path: Path) -> None:
    config = StudentConfig(tmp_path / "student", steps=3, learning_rate=1e18, dtype="float32")
    message = (
        r"^step 3: the validation loss is not finite, so the training has diverged; run again with a --learning-rate "
        r"below 1e\+18$"
    )
    with pytest.raises(CometError, match=message):
        distill([cache], config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "checkpoints", "said"),
    [
        ("float32", 0, r"run again with a --learning-rate below 1e\+18"),
        ("bfloat16", 0, r"run again with a --learning-rate below 1e\+18, or --dtype float32"),
        ("float32", 1, r"remove .*/student\.checkpoints, then run again with a --learning-rate below 1e\+18"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_at_once(
    cache: Cache, tmp_path: Path, dtype: str, checkpoints: int, said: str
) -> None:
    """The advice can be followed: with a checkpoint, another rate is refused until its folder is removed."""
    config = StudentConfig(
        tmp_path / "student", "nano", steps=1000, batch_size=4, learning_rate=1e18, dtype=dtype,
        save_minutes=0 if checkpoints else 60,
    )  # fmt: skip
    message = rf"^step 10: the loss is (nan|inf), so the training has diverged; {said}$"
    with pytest.raises(CometError, match=message):
        distill([cache], config)
    assert [path.name for path in tmp_path.iterdir()] == ["student.checkpoints"] * checkpoints


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_a_language_exponent_that_cannot_be(alpha: float, tmp_path: Path) -> None:
    with pytest.raises(CometError, match=r"^--language-alpha .*: expected a number above 0, up to 1$"):
        StudentConfig(tmp_path / "student", language_alpha=alpha)


def test_half_a_batch_is_one_that_the_processes_can_share() -> None:
    arguments: Any = SimpleNamespace(per_device_train_batch_size=4, device=torch.device("cpu"))
    with (
        pytest.raises(
            CometError, match=r"^out of memory with 4 rows at a time on cpu; .* --batch-size, such as 8 with"
        ),
        enough_memory(arguments, 4),
    ):
        raise torch.OutOfMemoryError("out of memory")
