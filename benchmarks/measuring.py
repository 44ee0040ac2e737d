"""Measure the memory of a process, and run functions in processes of their own so that each has its own peak."""

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def memory(field: str) -> float:
    """A field of this process's status, such as VmRSS or VmHWM, in MiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def in_child(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function returns in a process of its own, and the peak memory of that process, of its GPU if it has one,
    in MiB. (getrusage would not do: a child's peak begins at that of its parent.)"""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # which says so when the process dies
        return pool.submit(measured, function, *arguments).result()


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    result = function(*arguments)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else memory("VmHWM")
    return result | {"peak_mib": round(peak)}
