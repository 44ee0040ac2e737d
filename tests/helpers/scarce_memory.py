"""A device on which only small batches find room."""

import pytest

from cache_tools.teacher.forward import HostBatch, Launched, TeacherPass


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> list[int]:
    """The sizes of the batches that were tried."""
    tried: list[int] = []
    real = TeacherPass.launch

    def launch(self: TeacherPass, batch: HostBatch) -> Launched:
        tried.append(len(batch.length))
        if len(batch.length) > rows:
            raise error
        return real(self, batch)

    monkeypatch.setattr(TeacherPass, "launch", launch)
    return tried
