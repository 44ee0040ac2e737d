"""What a launch of the teacher queues on a device: nothing that waits, crosses devices or sums in half precision.

It runs on a device without numbers; `docs/developing.md` says what that cannot see.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.device_discipline import DEVICE, InHalfPrecision, OnTheWrongDevice, Waits, disciplined
from helpers.small_caches import small_recipe
from helpers.tiny_teachers import TEACHERS

from cache_tools.signals import TOKEN_ARRAYS, UNUSED_POSITION
from cache_tools.store.layout import group_arrays
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.forward import HostBatch, TeacherPass, host_batch, seen_mask
from cache_tools.teacher.model import Teacher, load_teacher

ROWS, SEQ_LEN = 4, 32
LENGTHS = {"full rows": [SEQ_LEN] * ROWS, "padded rows": [SEQ_LEN, 9, 20, 3]}


@pytest.fixture(scope="module", params=["xlm-r", "bert", "modernbert"])
def teacher(
    request: pytest.FixtureRequest, sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Teacher:
    folder = sample_teacher
    if request.param != "xlm-r":
        folder = tmp_path_factory.mktemp(request.param)
        TEACHERS[request.param](folder, sample_text)
    return load_teacher(str(folder)).to(DEVICE, torch.bfloat16)


def recipe_for(teacher: Teacher, keep: str = "threshold") -> Recipe:
    return small_recipe(
        keep=keep, vocab_size=len(teacher.head.weight), seq_len=SEQ_LEN, max_targets=6, top_k=16,
        temperatures=(1.0, 2.0), attention_layers=(0, 1), attention_queries=3, attention_keys=8,
    )  # fmt: skip


def batch_of(recipe: Recipe, lengths: list[int]) -> HostBatch:
    """Rows of these lengths with a target at every second position, as far as there are slots."""
    length = np.array(lengths, np.uint16)
    position = 1 + 2 * np.arange(recipe.max_targets)
    return host_batch(
        recipe,
        {
            "input_ids": np.random.default_rng(0).integers(5, 400, (ROWS, SEQ_LEN), dtype=np.int32),
            "length": length,
            "target_position": np.where(position < length[:, None] - 1, position, UNUSED_POSITION).astype(np.uint16),
            "row_key": np.arange(ROWS, dtype=np.uint64),
        },
    )


def pass_of(teacher: Teacher, recipe: Recipe) -> TeacherPass:
    return TeacherPass(teacher, recipe, seen_mask(np.arange(5, 300, dtype=np.int32), recipe.vocab_size))


@pytest.mark.parametrize("keep", ["threshold", "topk"])
@pytest.mark.parametrize("rows", LENGTHS)
def test_a_launch_only_queues_work_on_one_device(teacher: Teacher, keep: str, rows: str) -> None:
    recipe = recipe_for(teacher, keep)
    teacher_pass, batch = pass_of(teacher, recipe), batch_of(recipe, LENGTHS[rows])
    with disciplined():
        launched = teacher_pass.launch(batch)
    assert launched.features.device == DEVICE
    specs = {n: s for n, s in group_arrays(recipe, "train").items() if n not in TOKEN_ARRAYS}
    assert set(launched.results) == set(specs)
    for name, result in launched.results.items():
        assert result.device.type == "cpu", name
        assert result.numpy().dtype == specs[name].dtype, name


FAULTS: dict[str, tuple[type[AssertionError], Callable[[torch.Tensor], torch.Tensor]]] = {
    "a value read": (Waits, lambda hidden: hidden * hidden[0, 0].item()),
    "a look at all": (Waits, lambda hidden: hidden if (hidden > 0).all() else -hidden),
    "a mask as index": (Waits, lambda hidden: hidden[hidden[:, 0] > 0]),
    "a list as index": (Waits, lambda hidden: hidden[:, list(range(hidden.shape[1]))]),
    "numbers of the host": (Waits, lambda hidden: hidden * torch.tensor([0.5], device=DEVICE)),
    "a copy that waits": (Waits, lambda hidden: hidden.to("cpu").to(DEVICE)),
    "an operand left behind": (OnTheWrongDevice, lambda hidden: hidden + torch.zeros(hidden.shape)),
    "an index left behind": (OnTheWrongDevice, lambda hidden: hidden[torch.arange(len(hidden))]),
    "a sum in half precision": (InHalfPrecision, lambda hidden: hidden - hidden.logsumexp(1, keepdim=True)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(sample_teacher: Path, fault: str) -> None:
    error, transform = FAULTS[fault]
    teacher = load_teacher(str(sample_teacher)).to(DEVICE, torch.float16)
    recipe = recipe_for(teacher)
    teacher_pass = pass_of(replace(teacher, transform=transform), recipe)
    with disciplined(), pytest.raises(error):
        teacher_pass.launch(batch_of(recipe, LENGTHS["full rows"]))
