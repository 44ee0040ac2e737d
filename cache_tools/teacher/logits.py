"""What is kept of the teacher's distribution at a target, and the k most probable tokens as one way to choose it.

What is not kept is summed itself, never taken as total − kept, which would cancel where the tail is small. Nothing
here waits for the device: all shapes follow from the settings.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cache_tools.teacher.head import BlockedHead, BlockLogits, OpenedBlocks, ranked_ids


@dataclass(frozen=True)
class KeptLogits:
    """What a cache stores of T targets. Shapes: ids, logprob [T, k]; tails [T, n_T]; threshold [T] or None."""

    ids: Tensor
    logprob: Tensor
    tail_logmass: Tensor
    tail_logmass_seen: Tensor
    threshold: Tensor | None


def keep_topk(features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...]) -> KeptLogits:
    """The k most probable tokens of each target, best first, ties to the lower id, and the tails. `features` [T, H]."""
    parts = []
    for portion in head.portions(len(features)):
        blocks = head.block_logits(features[portion], temperatures)
        opened = blocks.open_likeliest(k)
        chosen = opened.rank.flatten(1).topk(k, dim=1).indices  # [T, k]
        parts.append(kept_logits(blocks, opened, chosen, temperatures))
    return joined(parts)


def kept_logits(
    blocks: BlockLogits,
    opened: OpenedBlocks,
    chosen: Tensor,
    temperatures: tuple[float, ...],
    threshold: Tensor | None = None,
) -> KeptLogits:
    """What a cache stores when the tokens `chosen` [T, k] are kept, places in the opened blocks [T, c · BLOCK]."""
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
    return KeptLogits(
        ids=ranked_ids(opened.rank.flatten(1).gather(1, chosen)),
        logprob=kept - log_total[:, None],
        tail_logmass=torch.logaddexp(logmass_seen, logmass_unseen),
        tail_logmass_seen=logmass_seen,
        threshold=threshold,
    )


def joined(parts: list[KeptLogits]) -> KeptLogits:
    def column(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return KeptLogits(*(column(field.name) for field in fields(KeptLogits)))
