"""Views that the teacher continues, for languages with hardly any text: each begins from the view before, its masked
tokens filled by draws from the teacher's distribution (as in TinyBERT's augmentation of task data, Jiao et al. 2020,
https://arxiv.org/abs/1909.10351, but in chains). Draws depend on the rows and on the arithmetic of this machine; the
resulting rows are sealed in the cache.
"""

import os
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
TARGETS_AT_ONCE = 64  # each takes several float64 of every token


@torch.no_grad()
def continued_rows(
    teacher: Teacher,
    rows: PackedRows,
    masking: Masking,
    ids: NDArray[np.int32],
    views: int,
    chain: int,
    device: torch.device,
    path: Path,
) -> PackedRows:
    """Return the unmasked rows of all views [views × R, L], view 0 first, in a new file at `path`.

    Every `chain`-th view is of the text, as `rows` are. Each other view is the one before it, whose masked tokens the
    teacher fills with any of `ids` [V']. The teacher reads on `device` and is on the CPU before and after. Raises
    OSError if the disk is full.
    """
    count, seq_len = rows.tokens.shape
    reading = teacher.to(device, torch.float32)
    with path.open("w+b") as file:
        for view in show_progress(range(views), "continue", "view"):
            for first in range(0, count, ROWS_AT_ONCE):
                part = slice(first, first + ROWS_AT_ONCE)
                tokens = rows.tokens[part]
                if view % chain:
                    file.seek(((view - 1) * count + first) * seq_len * tokens.itemsize)
                    tokens = np.frombuffer(file.read(tokens.nbytes), tokens.dtype).reshape(tokens.shape)
                    masked = mask_rows(tokens, rows.length[part], view - 1, masking)
                    tokens = fill_targets(reading, tokens, masked, ids, device)
                    file.seek(0, os.SEEK_END)
                file.write(tokens.tobytes())  # not through a map, where a full disk would kill the process
    teacher.to(torch.device("cpu"), torch.float32)
    every = np.memmap(path, np.int32, "r", shape=(views * count, seq_len))
    return PackedRows(every, np.tile(rows.length, views))


def fill_targets(
    teacher: Teacher, tokens: NDArray[np.int32], masked: MaskedRows, ids: NDArray[np.int32], device: torch.device
) -> NDArray[np.int32]:
    """Return rows [R, L] with the targets replaced by draws from the teacher's distribution among `ids` [V']."""
    row, slot = np.nonzero(masked.target_position != UNUSED_POSITION)  # [T]
    position = masked.target_position[row, slot].astype(np.int64)
    read, length, columns = (
        torch.from_numpy(array.astype(np.int64)).to(device) for array in (masked.input_ids, masked.length, ids)
    )
    mask = torch.arange(read.shape[1], device=device) < length[:, None]
    hidden = teacher.hidden_states(read, mask, None)
    features = teacher.transform(hidden[torch.from_numpy(row).to(device), torch.from_numpy(position).to(device)])
    height = uniform(mix(mix(masked.row_key[row], FILL), position.astype(np.uint64)))  # [T] in [0, 1)
    heights = torch.from_numpy(height).to(device)[:, None]
    drawn = [
        torch.searchsorted(
            teacher.head.logits(some)[:, columns].double().softmax(1).cumsum(1),  # [t, V'], up to 1
            at,
            right=True,
        )
        for some, at in zip(features.split(TARGETS_AT_ONCE), heights.split(TARGETS_AT_ONCE), strict=True)
    ]
    result = tokens.copy()
    result[row, position] = ids[torch.cat(drawn)[:, 0].clamp(max=len(ids) - 1).cpu().numpy()]
    return result
