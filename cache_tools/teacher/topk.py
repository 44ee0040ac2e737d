"""The signal `topk`: the k most probable tokens of each target, and the mass of all others.

The tail is summed itself, never taken as total − kept, which would cancel where the tail is small. Nothing here waits
for the device: all shapes follow from the settings.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.store.recipe import Recipe
from cache_tools.teacher.comparison import Arrays, Errors, both_ways, bucketed_kl, looked_up
from cache_tools.teacher.head import BlockedHead, ranked_ids, rounded_nats
from cache_tools.teacher.model import Observation


@dataclass(frozen=True)
class TopLogits:
    """The stored arrays of T targets: ids, logprob [T, k]; tails [T, n_T]."""

    ids: Tensor
    logprob: Tensor
    tail_logmass: Tensor
    tail_logmass_seen: Tensor


def keep_topk(features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...]) -> TopLogits:
    """Return the top k tokens of each target, best first, ties to the lower id, and the tails. `features` [T, H]."""
    parts = []
    for portion in head.portions(len(features)):
        blocks = head.block_logits(features[portion], temperatures)
        opened = blocks.open_likeliest(k)
        chosen = opened.rank.flatten(1).topk(k, dim=1).indices  # [T, k]
        values = opened.logits.flatten(1)  # [T, c · BLOCK]
        rest = values.scatter(1, chosen, -torch.inf).view_as(opened.logits)
        opened_is_seen = (opened.number < blocks.seen_blocks)[..., None]  # [T, c, 1]
        rest_by_kind = [rest.masked_fill(~opened_is_seen, -torch.inf), rest.masked_fill(opened_is_seen, -torch.inf)]
        tails = {}
        for t in dict.fromkeys((1.0, *temperatures)):
            closed = blocks.log_sums[t].scatter(0, opened.number.T, -torch.inf)  # [n, T]
            closed_by_kind = closed[: blocks.seen_blocks], closed[blocks.seen_blocks :]
            tails[t] = [
                torch.logaddexp(others.logsumexp(0), (opened_rest / t).flatten(1).logsumexp(1))
                for others, opened_rest in zip(closed_by_kind, rest_by_kind, strict=True)
            ]  # of seen and of unseen tokens, [T]
        kept = values.gather(1, chosen)  # [T, k]
        log_total = torch.stack([kept.logsumexp(1), *tails[1.0]]).logsumexp(0)  # [T]
        logmass_seen = torch.stack([tails[t][0] - log_total / t for t in temperatures], dim=1)  # [T, n_T]
        logmass_unseen = torch.stack([tails[t][1] - log_total / t for t in temperatures], dim=1)
        ids = ranked_ids(opened.rank.flatten(1).gather(1, chosen))
        logprob = kept - log_total[:, None]
        parts.append(TopLogits(ids, logprob, torch.logaddexp(logmass_seen, logmass_unseen), logmass_seen))
    return TopLogits(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TopLogits)))


@dataclass(frozen=True)
class TopkLogits:
    """Compute and compare the arrays of `topk`."""

    recipe: Recipe

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        kept = keep_topk(observed.features, head, self.recipe.top_k, self.recipe.temperatures)
        return {
            "topk_id": kept.ids.int(),
            "topk_logprob": kept.logprob.half(),
            "tail_logmass": rounded_nats(kept.tail_logmass),
            "tail_logmass_seen": rounded_nats(kept.tail_logmass_seen),
        }

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        return {}

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the errors of arrays [T, …]; `kl` is over tokens that both runs keep and the rest as one bucket."""
        ids, again = stored["topk_id"], found["topk_id"]  # [T, k]
        value, value_again = stored["topk_logprob"].astype(float), found["topk_logprob"].astype(float)
        match, match_again = looked_up(ids, again, value_again), looked_up(again, ids, value)  # [T, k] NaN: no match
        errors = {"topk_logprob": both_ways(value, match, value_again[:, -1:], value_again, match_again, value[:, -1:])}
        scale = 1 / np.array(self.recipe.temperatures)
        moved = np.isnan(match).sum(1)[:, None] * np.exp(np.maximum(value, value_again)[:, -1:] * scale)  # [T, n_T]
        for name in ("tail_logmass", "tail_logmass_seen"):
            errors[name] = _tail_errors(stored[name].astype(float), found[name].astype(float), moved)
        kl = []
        for index, power in enumerate(scale):
            rest = np.exp(stored["tail_logmass"][:, index].astype(float))  # [T]
            rest += np.where(np.isnan(match), np.exp(value * power), 0.0).sum(1)
            rest_again = np.exp(found["tail_logmass"][:, index].astype(float))
            rest_again += np.where(np.isnan(match_again), np.exp(value_again * power), 0.0).sum(1)
            kl.append(bucketed_kl(value * power, match * power, rest, rest_again))
        return errors | {"kl": np.stack(kl), "topk_id": np.isnan(match).astype(float)}


def _tail_errors(tail: NDArray, tail_again: NDArray, moved: NDArray) -> NDArray[np.float64]:
    """Return the distance between log masses, up to a mass `moved` from the kept tokens to the tail or back."""
    low, high = np.log(np.maximum(np.exp(tail) - moved, 0.0)), np.log(np.exp(tail) + moved)
    apart = np.maximum(np.maximum(low - tail_again, tail_again - high), 0.0)
    return np.where(tail == tail_again, 0.0, apart)
