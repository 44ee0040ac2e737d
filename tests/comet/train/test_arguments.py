"""`--set`: every field of TrainingArguments works as it says, changes no student as it says, or is refused by name."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY
from helpers.students import NANO
from torch import Tensor
from transformers import TrainingArguments

from cache_tools import Cache
from cache_tools.errors import CometError
from comet.preparation import training_arguments
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.arguments import KEEPS_STUDENT, REFUSED, SCHEDULES, WORKS, checked_settings
from comet.train.dataset import CacheRows, arrays_to_read, shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.trainer import DistillationTrainer
from comet.train.validation import validation_rows

Train = Callable[..., DistillationTrainer]


@pytest.fixture
def train(cache: Cache, tmp_path: Path) -> Train:
    """A function that trains a student for four steps with some settings."""

    def four_steps(**settings: Any) -> DistillationTrainer:
        config = StudentConfig(tmp_path / "s", steps=4, batch_size=8, arguments=tuple(settings.items()))
        student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0, init="cache")
        distiller = Distiller(student, cache.recipe, DEFAULT)
        arguments = training_arguments(config, NANO)
        arguments.output_dir = str(tmp_path / "checkpoints")
        rows = CacheRows(shards_of([cache], "train"), arrays_to_read(cache.recipe, attention=True))
        trainer = DistillationTrainer(distiller, arguments, rows, validation_rows(shards_of([cache], "validation")))
        trainer.train()
        rows.expect([])
        return trainer

    return four_steps


def weights(trainer: DistillationTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def refused(name: str, value: Any) -> str:
    with pytest.raises(CometError) as caught:
        checked_settings([(name, value)])
    message = str(caught.value)
    assert caught.value.exit_code == 2 and message.startswith(f"--set {name}") and "\n" not in message
    return message


def test_every_field_of_this_transformers_is_in_one_table() -> None:
    there = {field.name for field in fields(TrainingArguments)}
    counts = Counter([*WORKS, *KEEPS_STUDENT, *REFUSED])
    assert set(counts.values()) == {1}
    assert there <= set(counts), "a new field: decide whether it works, keeps the student, or is refused"


def test_the_guide_lists_the_fields_that_are_passed_on() -> None:
    guide = (REPOSITORY / "docs" / "guide.md").read_text(encoding="utf-8")
    rows = re.search(r"### Settings of transformers\n(.*?)\n\n`--set", guide, re.DOTALL)
    assert rows is not None
    assert set(re.findall(r"`(\w+)`", rows[1].partition("|---")[2])) == set(WORKS | KEEPS_STUDENT)


@pytest.mark.parametrize("value", ["true", "7"])
@pytest.mark.parametrize("name", REFUSED)
def test_fields_without_a_meaning_are_refused_by_name(name: str, value: str) -> None:
    assert re.search(r": not with comet; \w.{10,}", refused(name, value))


def test_the_advice_of_a_refusal_is_an_option_there_is() -> None:
    from comet.cli.train import train as command

    there = {option for parameter in command.params for option in parameter.opts}
    for name, why in REFUSED.items():
        for option in re.findall(r"^give (--[a-z-]+)", why):
            assert option in there, name


def test_a_token_is_not_repeated() -> None:
    assert "s3cr3t" not in refused("hub_token", "s3cr3t")
    assert "s3cr3t" not in refused("hub_tokn", "s3cr3t"), "nor one with a slip in its name"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[(name, "nan", "expected a number from 0") for name in ("weight_decay", "adam_epsilon", "max_grad_norm")],
        ("adam_beta1", "1", "expected a number from 0 to below 1"),
        ("adam_beta2", "-0.1", "expected a number from 0 to below 1"),
        ("warmup_steps", "-3", "expected a number from 0"),
        ("warmup_steps", "inf", "expected a number from 0"),
        ("weight_decay", "1e400", "expected a number from 0"),
        ("logging_steps", "0", "expected a whole number from 1"),
        ("logging_steps", "2.5", "expected a whole number from 1"),
        ("logging_steps", "9" * 5000, "expected a whole number from 1"),
        ("save_total_limit", "0", "expected a whole number from 1"),
        ("save_steps", "", "expected a whole number from 1"),
        ("use_cpu", "maybe", "expected true or false"),
        ("use_cpu", "1", "expected true or false"),
        ("optim", "lomo", "expected adamw_torch_fused, adamw_torch, adafactor"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "expected linear, cosine, "),
        ("lr_scheduler_kwargs", "5", "expected a table, such as"),
        ("lr_scheduler_kwargs", {"num_cycles": float("nan")}, "expected a table, such as"),
        ("report_to", "wandb", "expected none, or of "),
        ("run_name", "", "expected a string"),
        ("run_name", "a\x1b[2J", "expected a string"),
        ("ddp_backend", "foo", "expected gloo, nccl"),
        ("warmup_step", "5", "unknown field; did you mean warmup_steps?"),
        ("nonsense", "5", "unknown field; expected one of activation_checkpointing, "),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, value: Any, expected: str) -> None:
    assert expected in refused(name, value)


def test_values_are_parsed_by_the_field_s_type() -> None:
    given = {"use_cpu": "FALSE", "warmup_steps": "1e-1", "logging_steps": 5, "report_to": "none", "run_name": "'a'"}
    given |= {"lr_scheduler_kwargs": "{'num_cycles': 2}"}
    assert dict(checked_settings(given.items())) == {
        "use_cpu": False, "warmup_steps": 0.1, "logging_steps": 5, "report_to": ["none"], "run_name": "a",
        "lr_scheduler_kwargs": {"num_cycles": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adafactor", "adam_beta1": "0.5"}, "adam_beta1=0.5: has no meaning with adafactor"),
        ({"lr_scheduler_type": "constant", "warmup_steps": "9"}, "give lr_scheduler_type=constant_with_warmup"),
        ({"save_strategy": "steps"}, "save_strategy=steps and save_steps=N need each other"),
        ({"save_steps": "5"}, "save_strategy=steps and save_steps=N need each other"),
        ({"logging_strategy": "epoch", "logging_steps": "5"}, "has no meaning with logging_strategy=epoch"),
    ],
)
def test_settings_that_another_one_leaves_without_a_meaning_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(CometError, match=re.escape(message)):
        checked_settings(settings.items())


def test_one_setting_given_twice_is_refused() -> None:
    with pytest.raises(CometError, match="--set use_cpu: given twice"):
        checked_settings([("use_cpu", "true"), ("use_cpu", "false")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--set lr_scheduler_type=cosine_with_min_lr: "),
        ({"lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs=.*: get_cosine.* has no argument 'a'"),
        ({"ddp_timeout": 60}, "--set ddp_timeout: only for several processes; start with torchrun"),
    ],
)
def test_settings_that_do_not_fit_are_found_before_the_first_step(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CometError, match=message):
        training_arguments(StudentConfig(tmp_path / "s", arguments=tuple(settings.items())), NANO)


NEEDED = {
    "cosine_with_min_lr": {"min_lr": 1e-5},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-5},
    "warmup_stable_decay": {"num_decay_steps": 2},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_of_the_table_works(schedule: str, tmp_path: Path) -> None:
    settings = (("lr_scheduler_type", schedule), ("lr_scheduler_kwargs", NEEDED.get(schedule, {})))
    training_arguments(StudentConfig(tmp_path / "s", arguments=settings), NANO)


EFFECTS: dict[str, tuple[Any, Any]] = {
    "lr_scheduler_type": ("cosine", "linear"),
    "lr_scheduler_kwargs": ({"num_cycles": 0.5}, {"num_cycles": 0.2}),
    "warmup_steps": ("0.05", "3"),
    "optim": ("adamw_torch_fused", "adafactor"),
    "weight_decay": ("0.01", "0.5"),
    "adam_beta1": ("0.9", "0.5"),
    "adam_beta2": ("0.98", "0.5"),
    "adam_epsilon": ("1e-8", "1e-3"),
    "max_grad_norm": ("1", "0.01"),
    "gradient_accumulation_steps": ("1", "2"),
}


@pytest.mark.slow
def test_settings_of_the_optimiser_change_the_student_and_the_default_ones_do_not(train: Train) -> None:
    plain = weights(train())
    for name, (default, other) in EFFECTS.items():
        assert torch.equal(weights(train(**{name: default})), plain), name
        assert (weights(train(**{name: other})) - plain).abs().max() > 1e-6, name


HARMLESS: dict[str, Any] = {
    "per_device_eval_batch_size": 3,
    "dataloader_pin_memory": "true",
    "torch_empty_cache_steps": 1,
    "logging_strategy": "epoch",
    "logging_steps": 1,
    "logging_first_step": "true",
    "report_to": "tensorboard",
    "run_name": "mine",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_the_others_do_not_change_it(train: Train) -> None:
    assert set(HARMLESS) == set(KEEPS_STUDENT)
    plain = weights(train())
    for name, value in HARMLESS.items():
        assert torch.equal(weights(train(**{name: value})), plain), name


def test_a_step_of_two_batches_reads_both(train: Train) -> None:
    trainer = train(gradient_accumulation_steps=2)
    assert trainer.state.global_step == 4
    assert trainer.state.epoch == pytest.approx(4 * 2 / len(trainer.get_train_dataloader()))


@pytest.mark.slow
def test_activation_checkpointing_computes_layers_again(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaIntermediate

    calls = [0]
    forward = XLMRobertaIntermediate.forward

    def counted(self: Any, *args: Any) -> Tensor:
        calls[0] += self.training
        return forward(self, *args)

    monkeypatch.setattr(XLMRobertaIntermediate, "forward", counted)
    plain, once = weights(train()), calls[0]
    calls[0] = 0
    again = weights(train(activation_checkpointing="true"))
    assert calls[0] == 2 * once
    assert torch.allclose(again, plain, atol=1e-5)


def test_full_determinism_is_asked_of_torch(train: Train) -> None:
    try:
        train(full_determinism="true")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_use_cpu_keeps_the_training_off_a_gpu(train: Train) -> None:
    assert train(use_cpu="true").args.device.type == "cpu"
