"""The fields of transformers' TrainingArguments that `--set` accepts, and their legal values.

Every field of the supported versions of transformers is in one of three tables. What a newer version adds is refused
until it is in one of them: a setting that is taken and not used would change nothing, and nobody would know.
"""

import ast
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_available_reporting_integrations

from cache_tools.errors import CometError, first_line

MOST = 2**31 - 1
SECRET = "hub_token"  # its value is never shown


@dataclass(frozen=True)
class Values:
    """The values of a field: in words, and a function that converts one, given as text or not, or raises ValueError."""

    expected: str
    convert: Callable[[Any], Any]


def _whole(least: int) -> Values:
    def convert(value: Any) -> int:
        number = int(str(value))
        if not least <= number <= MOST:
            raise ValueError
        return number

    return Values(f"a whole number from {least}", convert)


def _number(most: float = math.inf) -> Values:
    def convert(value: Any) -> float:
        number = float(str(value))
        if not 0 <= number < most:
            raise ValueError
        return number

    return Values("a number from 0" + ("" if most == math.inf else f" to below {most:g}"), convert)


def _truth() -> Values:
    def convert(value: Any) -> bool:
        return {"true": True, "false": False}[str(value).lower()]

    return Values("true or false", convert)


def _one_of(*choices: str) -> Values:
    def convert(value: Any) -> str:
        return choices[choices.index(value)]

    return Values(", ".join(choices), convert)


def _table() -> Values:
    def convert(value: Any) -> dict[str, Any]:
        json.dumps(value, allow_nan=False)
        if not isinstance(value, dict):
            raise ValueError
        return value

    return Values("a table, such as {'min_lr_rate': 0.1}", convert)


def _text() -> Values:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 100:
            raise ValueError
        return value

    return Values("a string of up to 100 characters", convert)


def _trackers() -> Values:
    there = get_available_reporting_integrations()

    def convert(value: Any) -> list[str]:
        names = value if isinstance(value, list) else value.split(",")
        if names != ["none"] and not set(names) <= set(there):
            raise ValueError
        return names

    return Values(f"none, or of {', '.join(there) or 'nothing'} (a tracker's package must be installed)", convert)


SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial"),
    *("constant", "constant_with_warmup", "inverse_sqrt", "warmup_stable_decay"),
)
OPTIMISERS = ("adamw_torch_fused", "adamw_torch", "adafactor")

WORKS: dict[str, Values] = {
    "lr_scheduler_type": _one_of(*SCHEDULES),
    "lr_scheduler_kwargs": _table(),
    "warmup_steps": _number(MOST),  # a share of the steps below 1
    "optim": _one_of(*OPTIMISERS),
    "weight_decay": _number(),
    "adam_beta1": _number(1),
    "adam_beta2": _number(1),
    "adam_epsilon": _number(),
    "max_grad_norm": _number(),
    "gradient_accumulation_steps": _whole(1),
    "activation_checkpointing": _truth(),
    "full_determinism": _truth(),
    "use_cpu": _truth(),
    "save_strategy": _one_of("no", "steps", "epoch"),  # beside --save-minutes
    "save_steps": _whole(1),
    "save_total_limit": _whole(1),
    "ddp_backend": _one_of("gloo", "nccl"),
    "ddp_timeout": _whole(1),
    "ddp_bucket_cap_mb": _whole(1),
}
"""Fields that change the student, its speed, or what a stop costs."""

KEEPS_STUDENT: dict[str, Values] = {
    "per_device_eval_batch_size": _whole(1),
    "dataloader_pin_memory": _truth(),
    "torch_empty_cache_steps": _whole(1),
    "logging_strategy": _one_of("steps", "epoch"),
    "logging_steps": _whole(1),
    "logging_first_step": _truth(),
    "report_to": _trackers(),
    "run_name": _text(),
}
"""Fields that do not change the student: logging, memory."""

_SAID_BY = {
    "--output": ("output_dir",),
    "--batch-size": ("per_device_train_batch_size", "auto_find_batch_size"),
    "--epochs": ("num_train_epochs",),
    "--steps": ("max_steps",),
    "--learning-rate": ("learning_rate",),
    "--seed": ("seed", "data_seed"),
    "--validate-steps": ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    "--dtype": ("bf16", "fp16", "tf32"),
    "--resume": ("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    "--recipe": ("label_smoothing_factor",),
    "--set activation_checkpointing": ("gradient_checkpointing",),
}
_NOT_HERE = {
    "the student is the best checkpoint anyway": (
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "a checkpoint is always whole, and SIGTERM writes one": (
        *("enable_jit_checkpoint", "save_only_model", "save_on_each_node"),
    ),
    "validation is comet's own, in float32": (
        *("bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "eval_do_concat_batches"),
        *("eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"),
    ),
    "the loader is comet's own: a thread reads whole shards ahead, and an epoch has every row": (
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name"),
    ),
    "the head is computed for a few tokens of each target, which this does not know": (
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config"),
        *("neftune_noise_alpha", "use_cache", "average_tokens_across_devices"),
    ),
    f"expected one of the optimisers {', '.join(OPTIMISERS)}, which take no more settings": (
        *("optim_args", "optim_target_modules"),
    ),
    "reentrant checkpointing would drop the gradient of attention, so there is one way": (
        *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    ),
    "nothing is uploaded; share the student's folder with `hf upload`": (
        *("push_to_hub", SECRET, "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
    ),
    "start several processes with torchrun, which share each batch": (
        *("local_rank", "accelerator_config", "parallelism_config", "fsdp", "fsdp_config", "deepspeed"),
        *("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"),
    ),
    "a loss that is not finite ends the training": ("logging_nan_inf_filter",),
    "comet shows its own lines, and logs tokens per second": (
        *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "include_num_input_tokens_seen"),
        *("skip_memory_metrics", "debug"),
    ),
    "the tracker is used with its own defaults": (
        *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
    "comet-train trains, and nothing else": ("do_train", "do_eval", "do_predict"),
}
REFUSED = {name: f"give {option}" for option, names in _SAID_BY.items() for name in names} | {
    name: why for why, names in _NOT_HERE.items() for name in names
}
"""Fields without a meaning here, with what holds or what to give instead."""


def checked_settings(settings: Collection[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Return the settings with values of the fields' types; a value may be its text.

    Raises CometError, naming the field, for one that is refused, unknown or given twice, and for a value that cannot
    stand in it.
    """
    if (
        isinstance(settings, str)
        or not isinstance(settings, Collection)
        or not all(isinstance(s, tuple | list) and len(s) == 2 for s in settings)
    ):
        raise CometError('arguments: expected pairs, such as (("warmup_steps", 100),)', exit_code=2)
    given: dict[str, Any] = {}
    for name, value in settings:
        if name in given:
            raise CometError(f"--set {name}: given twice", exit_code=2)
        given[name] = _checked(name, _literal(value))
    for name, needs in _conflicts(given):
        raise CometError(f"--set {name}={given[name]}: {needs}", exit_code=2)
    return tuple(given.items())


def _checked(name: str, value: Any) -> Any:
    shown = f"--set {name}" if name == SECRET else f"--set {name}={str(value)[:80]}"
    known = WORKS | KEEPS_STUDENT
    there = {field.name for field in fields(TrainingArguments)}
    if name in REFUSED:
        raise CometError(f"{shown}: not with comet; {REFUSED[name]}", exit_code=2)
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
        new = "a field of this version of transformers that comet does not know" if name in there else "unknown field"
        raise CometError(f"--set {str(name)[:80]}: {new}; {advice}", exit_code=2)
    if name not in there:
        raise CometError(f"--set {name}: a field of later versions of transformers; install a newer one", exit_code=2)
    try:
        return known[name].convert(value)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CometError(f"{shown}: expected {known[name].expected}", exit_code=2) from None


def _literal(value: Any) -> Any:
    """Return a list, a table or a quoted text that is given as text; any other text, such as a number, as it is."""
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return literal if isinstance(literal, str | list | dict) else value
    return value


def _conflicts(given: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield fields that would not be used beside the others, with what they need."""
    if given.get("optim") == "adafactor":
        yield from ((name, "has no meaning with adafactor") for name in given if name.startswith("adam_"))
    if given.get("lr_scheduler_type") == "constant" and "warmup_steps" in given:
        yield "warmup_steps", "has no meaning with a constant rate; give lr_scheduler_type=constant_with_warmup"
    if (given.get("save_strategy") == "steps") != ("save_steps" in given):
        name = "save_steps" if "save_steps" in given else "save_strategy"
        yield name, "save_strategy=steps and save_steps=N need each other"
    if given.get("logging_strategy") == "epoch" and "logging_steps" in given:
        yield "logging_steps", "has no meaning with logging_strategy=epoch"


def try_optimiser(arguments: TrainingArguments, settings: Iterable[tuple[str, Any]]) -> None:
    """Take one step on a small module with the optimiser and the schedule of a training.

    Raises CometError, naming the settings, if they do not fit together.
    """
    module = torch.nn.Linear(2, 2)
    try:
        kwargs: Any = arguments.lr_scheduler_kwargs or {}
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimiser = kind(module.parameters(), **options)
        schedule = get_scheduler(arguments.lr_scheduler_type, optimiser, 1, 100, dict(kwargs))
        module(torch.ones(1, 2)).sum().backward()
        optimiser.step()
        schedule.step()
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            raise ValueError("the first step is not finite")
    except (TypeError, ValueError, ArithmeticError, ImportError) as error:
        about = ("optim", "lr_scheduler_type", "lr_scheduler_kwargs", "weight_decay", "adam_epsilon")
        given = ", ".join(f"{name}={value}" for name, value in settings if name in about) or "the optimiser"
        why = first_line(error).replace("got an unexpected keyword argument", "has no argument")
        raise CometError(f"--set {given}: {why}", exit_code=2) from error
