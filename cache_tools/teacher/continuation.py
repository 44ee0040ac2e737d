"""Views that the teacher continues, for languages with hardly any text: each begins from the view before, its masked
tokens filled by draws from the teacher's distribution (as in TinyBERT's augmentation of task data, Jiao et al. 2020,
https://arxiv.org/abs/1909.10351, but in chains). Draws depend on the rows and on what this machine computes; the rows
that come of it are sealed in the cache.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.progress import show_progress
from cache_tools.signals import UNUSED_POSITION
from cache_tools.teacher.model import Teacher
from cache_tools.text.corpus import PackedRows
from cache_tools.text.draws import FILL, mix, uniform
from cache_tools.text.masking import MaskedRows, Masking, mask_rows

ROWS_AT_ONCE = 16


@torch.no_grad()
def continued_rows(
    teacher: Teacher, rows: PackedRows, masking: Masking, views: int, chain: int, device: torch.device, path: Path
) -> PackedRows:
    """Return the unmasked rows of all views [views × R, L], view 0 first, in a new file at `path`.

    Every `chain`-th view is of the text, as `rows` are. Each other view is the one before it, whose masked tokens the
    teacher fills, with tokens of the corpus only. The teacher reads on `device` and is on the CPU before and after.
    """
    count, seq_len = rows.tokens.shape
    tokens = np.memmap(path, dtype=np.int32, mode="w+", shape=(views, count, seq_len))
    reading = teacher.to(device, torch.float32)
    for view in show_progress(range(views), "continue", "view"):
        if view % chain == 0:
            tokens[view] = rows.tokens
            continue
        for first in range(0, count, ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            masked = mask_rows(tokens[view - 1, part], rows.length[part], view - 1, masking)
            tokens[view, part] = filled(reading, tokens[view - 1, part], masked, masking.seen, device)
    teacher.to(torch.device("cpu"), torch.float32)
    return PackedRows(tokens.reshape(-1, seq_len), np.tile(rows.length, views))


def filled(
    teacher: Teacher, tokens: NDArray[np.int32], masked: MaskedRows, seen: NDArray[np.int32], device: torch.device
) -> NDArray[np.int32]:
    """Return rows [R, L] with the targets drawn anew from the teacher's distribution among the ids `seen` [V]."""
    row, slot = np.nonzero(masked.target_position != UNUSED_POSITION)  # [T]
    position = masked.target_position[row, slot].astype(np.int64)
    ids, length, columns = (
        torch.from_numpy(array.astype(np.int64)).to(device) for array in (masked.input_ids, masked.length, seen)
    )
    mask = torch.arange(ids.shape[1], device=device) < length[:, None]
    hidden = teacher.hidden_states(ids, mask, None)
    features = teacher.transform(hidden[torch.from_numpy(row).to(device), torch.from_numpy(position).to(device)])
    weight, bias = teacher.head.weight[columns].float(), teacher.head.bias[columns].float()
    share = torch.addmm(bias, features.float(), weight.T).double().softmax(1).cumsum(1)  # [T, V], up to 1
    height = uniform(mix(mix(masked.row_key[row], FILL), position.astype(np.uint64)))  # [T] in [0, 1)
    drawn = torch.searchsorted(share, torch.from_numpy(height).to(device)[:, None], right=True)[:, 0]
    result = tokens.copy()
    result[row, position] = seen[drawn.clamp(max=len(seen) - 1).cpu().numpy()]
    return result
