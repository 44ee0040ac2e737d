"""The k most probable tokens of each target, and the mass of all others.

What is not kept is summed itself, never taken as total − kept, which would cancel where the tail is small. Nothing
here waits for the device: all shapes follow from the settings.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cache_tools.teacher.head import BlockedHead, ranked_ids


@dataclass(frozen=True)
class TopLogits:
    """What a cache stores of T targets. Shapes: ids, logprob [T, k]; tails [T, n_T]."""

    ids: Tensor
    logprob: Tensor
    tail_logmass: Tensor
    tail_logmass_seen: Tensor


def keep_topk(features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...]) -> TopLogits:
    """The k most probable tokens of each target, best first, ties to the lower id, and the tails. `features` [T, H]."""
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
        logmass_seen, logmass_unseen = (
            torch.stack([tails[t][kind] - log_total / t for t in temperatures], dim=1) for kind in (0, 1)
        )  # [T, n_T]
        ids = ranked_ids(opened.rank.flatten(1).gather(1, chosen))
        logprob = kept - log_total[:, None]
        parts.append(TopLogits(ids, logprob, torch.logaddexp(logmass_seen, logmass_unseen), logmass_seen))
    return TopLogits(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TopLogits)))
