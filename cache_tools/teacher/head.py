"""The last linear layer of a masked LM, and its logits in blocks, each read only once.

The logits of some targets are formed a slice of the vocabulary at a time. While they are in fast memory, each block of
`BLOCK` tokens is reduced to its largest logit and to its sums of exp(logit / T); only blocks that matter are opened
again. Tokens of the corpus and others never share a block, so that their tails stay separate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache_tools.signals import NATS_STEP

BLOCK = 32
SLICE = 4096  # tokens whose logits are formed at a time
ALIGNMENT = 16  # targets: products with rows of any other length take up to half as long again
HIGHEST_ID = 2**31 - 1
FINITE = 1e30  # nats, for infinitely improbable tokens: times their weight of 0 it is 0
LOG2_E = 1 / math.log(2)
LOGITS_AT_ONCE = {"cpu": 2**26, "cuda": 2**29}  # targets × vocabulary held in float32


@dataclass(frozen=True)
class Head:
    """The last linear layer of a masked-LM head: weight [V, H], bias [V], on the device of the features."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [T, V] float32 of features [T, H], never rounded to the compute dtype."""
        return torch.addmm(self.bias.float(), features.float(), self.weight.float().T)


@dataclass(frozen=True)
class OpenedBlocks:
    """Some blocks of each target: `number` [T, c] int64, `logits` [T, c, BLOCK] float32, `rank` [T, c, BLOCK] int64."""

    number: Tensor
    logits: Tensor
    rank: Tensor


@dataclass(frozen=True)
class BlockLogits:
    """The logits of T targets over n blocks of tokens; the first `seen_blocks` hold the tokens of the corpus.

    `logits` [n, BLOCK, T] and `largest` [n, T] float32; `log_sums[t]` [n, T] float32: log Σ exp(logit / t) of each
    block; `below[t]` [n, T] float32, with entropy only: mean distance of a block's logits below its largest, with
    weights exp(logit / t); `ids` [n, BLOCK] int32. Slots without a token have a logit of −∞.
    """

    logits: Tensor
    largest: Tensor
    log_sums: dict[float, Tensor]
    below: dict[float, Tensor]
    ids: Tensor
    seen_blocks: int

    def entropies(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Return (−Σ p log p over the vocabulary, −Σ p log(p / P) over the tokens of the corpus with mass P), each [T].

        With logits relative to the largest of a target all terms have one sign, so nothing cancels.
        """
        log_sums, seen = self.log_sums[temperature], slice(self.seen_blocks)
        log_total = log_sums.logsumexp(0)  # [T]
        highest = self.largest.amax(0)
        gap = (highest - self.largest + self.below[temperature]) / temperature  # [n, T] mean of each block
        terms = (log_sums - log_total).exp() * gap.masked_fill(log_sums == -torch.inf, 0.0)  # [n, T]
        log_seen = log_sums[seen].logsumexp(0)
        mass_seen = (log_seen - log_total).exp()
        above = (mass_seen * (log_seen - highest / temperature)).masked_fill(mass_seen == 0, 0.0)
        return log_total - highest / temperature + terms.sum(0), above + terms[seen].sum(0)

    def open(self, number: Tensor) -> OpenedBlocks:
        """Return the blocks `number` [T, c] of each target."""
        _, size, targets = self.logits.shape
        target = torch.arange(targets, device=number.device)[:, None, None]
        token = number[..., None] * size + torch.arange(size, device=number.device)  # [T, c, BLOCK]
        index = token * self.logits.stride(1) + target
        flat = self.logits.as_strided((self.logits.shape[0] * size * self.logits.stride(1),), (1,))
        logits = flat.index_select(0, index.flatten()).view_as(index)
        return OpenedBlocks(number, logits, _rank(logits, self.ids[number]))

    def open_likeliest(self, k: int) -> OpenedBlocks:
        """Return blocks that hold the k largest logits of each target, ties to the lower id.

        They are the k blocks with the largest logits of either kind (corpus, other): inside one kind blocks rise with
        their ids, so among equal logits the lower block has the lower id.
        """
        number = torch.arange(len(self.largest), dtype=torch.int32, device=self.largest.device)
        key = _rank(self.largest.T.contiguous(), number)  # [T, n]
        seen, other = key[:, : self.seen_blocks], key[:, self.seen_blocks :]
        parts = [part.topk(min(k, part.shape[1]), dim=1).indices for part in (seen, other)]
        return self.open(torch.cat([parts[0], self.seen_blocks + parts[1]], dim=1))


class BlockedHead:
    """A head with its tokens in blocks: those of the corpus first, each kind by rising id.

    `seen` [V] bool, on the CPU, marks the tokens of the corpus. Owns the memory for the logits of one batch of targets.
    """

    def __init__(self, head: Head, seen: Tensor) -> None:
        self.plain, vocab_size = head, len(head.weight)
        ids = [_in_blocks(kind.nonzero()[:, 0], vocab_size) for kind in (seen, ~seen)]  # [n, BLOCK]
        self.ids = torch.cat(ids).int().to(head.weight.device)
        self.seen_blocks = len(ids[0])
        token = self.ids.flatten().long()
        present = token < vocab_size
        token = token.where(present, 0)
        # CPUs multiply half precision into float32 only through float32 copies: make one, once
        dtype = torch.float32 if head.weight.device.type == "cpu" else head.weight.dtype
        self.weight = head.weight[token].to(dtype)  # [n · BLOCK, H]
        self.bias = head.bias[token].float().masked_fill(~present, -torch.inf)[:, None]  # [n · BLOCK, 1]
        self.memory = torch.empty(0, device=head.weight.device)

    def portions(self, targets: int) -> list[slice]:
        """Return equal portions of the targets, small enough for `block_logits`; of no targets, one empty portion."""
        budget = LOGITS_AT_ONCE.get(self.weight.device.type, LOGITS_AT_ONCE["cpu"])
        at_least_one = max(targets, 1)
        count = -(-at_least_one * len(self.weight) // budget)
        size = -(-at_least_one // (count * ALIGNMENT)) * ALIGNMENT
        return [slice(start, min(start + size, targets)) for start in range(0, at_least_one, size)]

    def block_logits(
        self, features: Tensor, temperatures: tuple[float, ...], with_entropy: bool = False
    ) -> BlockLogits:
        """Return the logits of features [T, H], T as in `portions`, with the sums for these temperatures and for 1.

        The next call overwrites the memory of the result.
        """
        rows, targets, blocks = len(self.weight), len(features), len(self.ids)
        width = -(-max(targets, 1) // ALIGNMENT) * ALIGNMENT
        if self.memory.numel() < rows * width:
            self.memory = torch.empty(rows * width, device=features.device)
        logits = self.memory[: rows * width].view(rows, width)
        largest = logits.new_empty(blocks, width)
        falling = sorted({1.0, *temperatures}, reverse=True)
        log_sums = {t: torch.empty_like(largest) for t in falling}
        below = {t: torch.empty_like(largest) for t in falling if with_entropy}
        features = nn.functional.pad(features.to(self.weight.dtype), (0, 0, 0, width - targets)).T  # [H, width]
        step = max(1, SLICE // BLOCK)
        scratch = logits.new_empty(3, min(step, blocks), BLOCK, width)
        for first in range(0, blocks, step):
            here = slice(first, min(first + step, blocks))
            tokens = slice(here.start * BLOCK, here.stop * BLOCK)
            product(self.weight[tokens], features, out=logits[tokens])
            logits[tokens] += self.bias[tokens]
            block = logits[tokens].view(-1, BLOCK, width)  # [b, BLOCK, width]
            torch.amax(block, 1, out=largest[here])
            distance, relative, weighted = scratch[:, : len(block)]
            torch.sub(largest[here, None], block, out=distance).clamp_(max=FINITE)
            for hotter, t in zip([0.0, *falling], falling, strict=False):
                if hotter == 2 * t:
                    relative.square_()  # exp(x / 2t)² is exp(x / t)
                else:
                    torch.mul(distance, -LOG2_E / t, out=relative).exp2_()
                torch.sum(relative, 1, out=log_sums[t][here])
                if with_entropy:
                    torch.sum(torch.mul(distance, relative, out=weighted), 1, out=below[t][here])
                    below[t][here] /= log_sums[t][here]
                log_sums[t][here].log_().add_(largest[here], alpha=1 / t)
        return BlockLogits(
            logits.view(blocks, BLOCK, width)[..., :targets],
            largest[:, :targets],
            {t: sums[:, :targets] for t, sums in log_sums.items()},
            {t: means[:, :targets] for t, means in below.items()},
            self.ids,
            self.seen_blocks,
        )


def _in_blocks(ids: Tensor, filler: int) -> Tensor:
    """Return ids [n, BLOCK] in their order, the last block filled up."""
    return nn.functional.pad(ids, (0, -len(ids) % BLOCK), value=filler).view(-1, BLOCK)


def product(weight: Tensor, features: Tensor, out: Tensor) -> None:
    """Write weight [v, H] times features [H, T] to `out` [v, T] float32; half-precision products are never rounded."""
    if weight.dtype == torch.float32:
        torch.mm(weight, features, out=out)
    else:
        torch.mm(weight, features, out_dtype=torch.float32, out=out)


def _rank(values: Tensor, ids: Tensor) -> Tensor:
    """Return int64 keys that order float32 `values` and, among equal ones, rank the lower of the int32 `ids` higher.

    The upper half is an integer that rises with the value, the lower half falls with the id; `ranked_ids` inverts it.
    """
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    rising = (bits >> 31).bitwise_and_(HIGHEST_ID).bitwise_xor_(bits)
    return torch.stack([(HIGHEST_ID - ids).expand_as(rising), rising], dim=-1).view(torch.int64)[..., 0]


def ranked_ids(rank: Tensor) -> Tensor:
    """Return the int64 ids in keys from `_rank`."""
    return HIGHEST_ID - (rank & HIGHEST_ID)


def rounded_nats(values: Tensor) -> Tensor:
    """Round to the nearest multiple of NATS_STEP."""
    return (values / NATS_STEP).round() * NATS_STEP
