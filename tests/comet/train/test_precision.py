"""Training in bfloat16: what is rounded, what is not, and how it is chosen."""

from dataclasses import replace

import pytest
import torch
from helpers.students import NANO

from cache_tools import Cache
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import collate
from comet.train.distiller import Distiller
from comet.train.losses import ATTENTION_LOSSES
from comet.train.objective import DEFAULT, PAPER, Objective
from comet.train.trainer import choose_bf16

CPU = torch.device("cpu")


def distiller_for(cache: Cache, objective: Objective, bf16: bool) -> Distiller:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    return Distiller(student, cache.recipe, objective, bf16=bf16)


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES)
def test_bfloat16_is_near_float32_and_trains_only(of_each_family: Cache, attention_loss: str) -> None:
    cache = of_each_family
    recipe = replace(DEFAULT, attention_loss=attention_loss, attention_weight=0.5)
    batch = collate({name: array.copy() for name, array in cache.read_shard("train", 0).items()}, cache.recipe)
    losses, gradients = [], []
    for bf16 in (False, True):
        distiller = distiller_for(cache, recipe, bf16).train()
        parts = distiller(**batch)
        losses.append(torch.stack(list(parts.values())).detach())
        parts["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in distiller.parameters() if p.grad is not None]))
        assert all(p.dtype == torch.float32 for p in distiller.parameters())
    assert not torch.equal(*losses), "nothing was rounded"
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.995
    whole, rounded = (distiller_for(cache, recipe, bf16).eval() for bf16 in (False, True))
    with torch.no_grad():
        assert torch.equal(whole(**batch)["loss"], rounded(**batch)["loss"]), "validation is in float32"


def test_the_choice_leaves_everything_as_it_was(cache: Cache) -> None:
    distiller = distiller_for(cache, replace(PAPER, dropout=0.1), False)
    batch = collate({name: array.copy() for name, array in cache.read_shard("train", 0).items()}, cache.recipe)
    before, weights = torch.get_rng_state(), [p.detach().clone() for p in distiller.parameters()]
    distiller.eval()
    assert choose_bf16("auto", distiller, batch, CPU) in (True, False)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, w) for p, w in zip(distiller.parameters(), weights, strict=True))
    assert all(p.grad is None for p in distiller.parameters())
    assert not distiller.training
    assert not distiller.bf16


@pytest.mark.parametrize(("requested", "expected"), [("float32", False), ("bfloat16", True)])
def test_what_is_asked_for_is_taken(cache: Cache, requested: str, expected: bool) -> None:
    assert choose_bf16(requested, distiller_for(cache, DEFAULT, False), {}, CPU) is expected
