"""A pull that is asked to stop while its server is silent."""

import signal
import time
from pathlib import Path

import pytest
from helpers import hostile_server as hostile
from helpers.builds import Running
from helpers.small_caches import make_cache

from cache_tools.verify.verify import verify

AT_ONCE = 5.0  # seconds; the server's time limit is 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("path", ["train/topk_id/c/1/0/0", "ledger/train-00001.json"])
def test_a_silent_server_is_not_waited_for(tmp_path: Path, path: str, number: signal.Signals) -> None:
    make_cache(tmp_path / "kin.zarr")
    with hostile.serving(tmp_path / "kin.zarr") as server:
        server.mischief[path] = hostile.silent, None
        running = Running(["pull", server.url, str(tmp_path / "copy")], tmp_path / "log")
        assert running.wait_until(lambda: server.requests[path] > 0)
        asked = time.monotonic()
        ended = running.send(number)
        assert time.monotonic() - asked < AT_ONCE
        assert ended.code == 1
        assert ended.stderr.splitlines()[-1] == "stopped; run the same command again to continue"
        del server.mischief[path]
        assert Running(["pull", server.url, str(tmp_path / "copy")], tmp_path / "log").wait().code == 0
    assert verify(tmp_path / "copy").damage == []
