"""The whole objective and the validation of a batch against plain transformers and the stored arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.students import NANO

from cache_tools import Cache
from cache_tools.errors import CometError
from cache_tools.signals import UNUSED_POSITION
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import CacheRows, collate, shards_of
from comet.train.distiller import Distiller, match_layers
from comet.train.losses import ATTENTION_LOSSES, residual_kl
from comet.train.objective import DEFAULT, Objective, Schedule, Steps
from comet.train.validation import validate, validation_rows


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_objective_is_the_sum_of_its_parts_computed_plainly(of_each_family: Cache, temperature: float) -> None:
    cache = of_each_family
    objective = replace(DEFAULT, temperature=temperature, kd_weight=0.7, hard_weight=0.2, attention_weight=0.4)
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0).eval()
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    length, seq_len = batch["length"], batch["input_ids"].shape[1]
    mask = torch.arange(seq_len) < length[:, None]
    student.set_attn_implementation("eager")
    plain = student(batch["input_ids"], attention_mask=mask, output_attentions=True)
    losses = Distiller(student, cache.recipe, objective)(**batch)
    logits = plain.logits[batch["target_row"], batch["target_position"]].double()

    lp, tail = batch["topk_logprob"].double(), batch["tail_logmass"][:, cache.recipe.temperatures.index(temperature)]
    p = torch.cat([(lp / temperature).exp(), tail.double().exp()[:, None]], 1)
    p = p / p.sum(1, keepdim=True)
    q = (logits / temperature).softmax(1).gather(1, batch["topk_id"])
    q = torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)
    kd = temperature**2 * (p * (p / q).log()).sum(1).mean()
    hard = torch.nn.functional.cross_entropy(logits, batch["target_id"])

    rows = []
    pairs = match_layers(cache.recipe, student.config.num_hidden_layers)
    assert any(teacher != student for teacher, student in pairs), "the matched layers are not simply the first"
    for teacher_layer, student_layer in pairs:
        mine = plain.attentions[student_layer].double().mean(1)
        index = cache.recipe.attention_layers.index(teacher_layer)
        query, key, weight = (batch[f"attention_{name}"][:, index] for name in ("query", "key", "weight"))
        for row, n in enumerate(length.tolist()):
            queries = -(-n // cache.recipe.attention_queries)
            of_query = [
                -(weight[row, slot].double() * mine[row, query[row, slot], key[row, slot]].log()).sum()
                for slot in range(queries)
            ]
            rows.append(torch.stack(of_query).mean() / len(pairs))
    attention = torch.stack(rows).sum() / len(length)

    for name, reference in (("kd", kd), ("hard", hard), ("attention", attention)):
        assert losses[name].item() == pytest.approx(reference.item(), rel=2e-3), name
    expected = 0.7 * kd + 0.2 * hard + 0.4 * attention
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=2e-3)
    parameters = dict(student.named_parameters())
    gradients = [torch.autograd.grad(loss, list(parameters.values())) for loss in (losses["loss"], expected)]
    for name, mine, theirs in zip(parameters, *gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7, name


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
def test_every_attention_loss_gives_a_gradient(cache: Cache, loss: str) -> None:
    rows = CacheRows(shards_of([cache], "train"), cache.extent.arrays)
    distiller = distiller_of(cache, replace(DEFAULT, kd_weight=0.0, attention_loss=loss)).train()
    losses = distiller(**collate(rows.__getitems__([0, 1, 2]), cache.recipe))
    losses["loss"].backward()
    assert losses["attention"] > 0
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any("query" in name and gradient.abs().sum() > 0 for name, gradient in gradients.items())


def test_rows_without_targets_teach_their_attention(cache: Cache) -> None:
    """As rows of unknown tokens alone, of which a small batch may have no others."""
    rows = CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 1])
    rows["target_position"][:] = UNUSED_POSITION
    distiller = distiller_of(cache, DEFAULT).train()
    losses = distiller(**collate(rows, cache.recipe))
    losses["loss"].backward()
    assert losses["kd"] == 0 and losses["loss"] == losses["attention"] > 0
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_validation_figures_are_those_of_the_whole_logits(cache: Cache) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0).eval()
    shards = shards_of([cache], "validation")
    rows = CacheRows(shards, cache.extent.arrays)
    batch = collate(rows.__getitems__(list(range(len(rows)))), cache.recipe)
    mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
    with torch.no_grad():
        logits = student(batch["input_ids"], attention_mask=mask).logits[batch["target_row"], batch["target_position"]]
    measured = validate(Distiller(student, cache.recipe, DEFAULT), validation_rows(shards), 4, torch.device("cpu"))
    best, truth, teacher = (x.numpy() for x in (logits.argmax(1), batch["target_id"], batch["topk_id"][:, 0]))
    assert measured.targets == len(truth)
    assert measured.accuracy == pytest.approx(np.mean(best == truth))
    assert measured.teacher_accuracy == pytest.approx(np.mean(teacher == truth))
    assert measured.agreement == pytest.approx(np.mean(best == teacher))
    assert measured.accuracy != measured.teacher_accuracy, "else mixing them up would go unnoticed"
    cross_entropy = torch.nn.functional.cross_entropy(logits, batch["target_id"]).item()
    assert measured.cross_entropy == pytest.approx(cross_entropy, rel=1e-4)


def test_activations_computed_again_change_nothing(of_each_family: Cache) -> None:
    cache = of_each_family
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    results = []
    for recompute in (False, True):
        student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
        distiller = Distiller(student, cache.recipe, DEFAULT).train()
        if recompute:
            distiller.activation_checkpointing_enable()
            assert student.is_activation_checkpointing
        losses = distiller(**batch)
        gradients = torch.autograd.grad(losses["loss"], list(student.parameters()))
        results.append([*losses.values(), *gradients])
    for kept, again in zip(*results, strict=True):
        torch.testing.assert_close(kept, again, rtol=0, atol=0)


def distiller_of(cache: Cache, objective: Objective) -> Distiller:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    return Distiller(student, cache.recipe, objective).eval()


@torch.no_grad()
def test_weights_and_temperature_follow_the_progress(cache: Cache) -> None:
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    changing = replace(
        DEFAULT,
        kd_weight=Schedule(1.0, 0.0),
        hard_weight=Schedule(0.0, 2.0, "cosine"),
        attention_weight=Schedule(0.4, 0.4),
        temperature=Steps(((0.0, 2.0), (0.5, 1.0))),
    )
    for progress, kd, hard, temperature in ((0.0, 1.0, 0.0, 2.0), (0.5, 0.5, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)):
        fixed = replace(DEFAULT, kd_weight=kd, hard_weight=hard, attention_weight=0.4, temperature=temperature)
        expected = distiller_of(cache, fixed)(**batch)
        found = distiller_of(cache, changing)(progress=progress, **batch)
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
        assert found["kd"].item() == pytest.approx(expected["kd"].item(), rel=1e-6), "parts come without their weight"


@torch.no_grad()
def test_the_residual_loss_is_that_of_the_recipe(cache: Cache) -> None:
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    distiller = distiller_of(cache, replace(DEFAULT, logit_loss="residual", temperature=2.0))
    features, _ = distiller.features(batch)
    student = distiller.logits(features, batch, 2.0)
    is_label = batch["topk_id"] == batch["target_id"][:, None]
    assert is_label.any() and not is_label.any(1).all(), "some true tokens were kept and some were not"
    tail = batch["tail_logmass"][:, cache.recipe.temperatures.index(2.0)]
    expected = (
        4 * residual_kl(batch["topk_logprob"], tail, is_label, student.kept, student.rest, student.label, 2.0).mean()
    )
    assert distiller(**batch)["kd"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_residual_needs_the_best_tokens(threshold_cache: Cache) -> None:
    with pytest.raises(CometError, match="logit_loss residual: needs a cache built with --keep topk, this one"):
        distiller_of(threshold_cache, replace(DEFAULT, logit_loss="residual"))


def test_every_temperature_of_a_recipe_must_be_stored(cache: Cache) -> None:
    with pytest.raises(CometError, match=r"the cache holds logits for 1,2 only; .* --temperatures 1,2,3$"):
        distiller_of(cache, replace(DEFAULT, temperature=Steps(((0.0, 1.0), (0.5, 3.0)))))


def test_a_layer_map_is_taken_as_given(cache: Cache) -> None:
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    by_depth = distiller_of(cache, DEFAULT)
    explicit = distiller_of(cache, replace(DEFAULT, layer_map=((-1, -1), (0, 0))))
    assert explicit.matched == ((0, 0), (3, 2)) != by_depth.matched
    one = distiller_of(cache, replace(DEFAULT, layer_map=((-1, -1),)))(**batch)["attention"].item()
    other = distiller_of(cache, replace(DEFAULT, layer_map=((0, 0),)))(**batch)["attention"].item()
    assert explicit(**batch)["attention"].item() == pytest.approx((one + other) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (((4, 0),), "teacher layer 4 is not in the cache, which has 0, 1, 2, 3"),
        (((-5, 0),), "teacher layer -5 is not in the cache"),
        (((0, 3),), "student layer 3: the student has 3"),
        (((0, -4),), "student layer -4: the student has 3"),
        (((0, 1), (1, 1)), "a student layer is named twice; match it to one teacher layer only"),
    ],
)
def test_layers_that_are_not_there(cache: Cache, pairs: tuple[tuple[int, int], ...], said: str) -> None:
    with pytest.raises(CometError, match=f"^layer_map: {said}"):
        distiller_of(cache, replace(DEFAULT, layer_map=pairs))


def test_an_objective_without_anything_to_learn_from_is_refused(cache: Cache) -> None:
    """A training would run to its end, and change nothing."""
    bare = replace(cache.recipe, attention_layers=())
    nothing = replace(DEFAULT, kd_weight=0.0, layer_map=((-1, -1),))
    with pytest.raises(CometError, match=r"kd_weight and hard_weight are 0, and the cache holds no attention$"):
        Distiller(distiller_of(cache, DEFAULT).student, bare, nothing)
    with pytest.raises(
        CometError, match=r"^objective default: nothing to learn from: .* 0, and so is attention_weight$"
    ):
        distiller_of(cache, replace(nothing, attention_weight=0.0))
    unused = replace(DEFAULT, attention_weight=0.0, layer_map=((99, 0),))
    assert distiller_of(cache, unused).matched == ()
