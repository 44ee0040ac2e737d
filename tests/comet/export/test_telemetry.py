"""An export tells nobody: onnxruntime would report to Microsoft, some seconds after it is loaded."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from helpers import REPOSITORY

SECONDS = 15  # it reports after nine
WORK = f"import time, comet.export.onnx_model; time.sleep({SECONDS})"


@pytest.mark.slow
def test_nothing_is_reported() -> None:
    """The process that has loaded it has a proxy, which nobody calls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[object] = []

        def count() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # it was closed
                    return
                calls.append(connection)
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        path = {"PYTHONPATH": str(REPOSITORY)}
        given = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | path
        subprocess.run([sys.executable, "-c", WORK], env=given | {"https_proxy": proxy}, check=True)
        assert calls == []
