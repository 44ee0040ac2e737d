"""Processes of our commands that talk to a hub server, forked from one that has loaded the libraries already.

The libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when they are imported, so each setting has a process of its
own to fork from. What a command would wait between its attempts is cut short; time-outs are one second.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import REPOSITORY

PATIENCE = 300  # seconds until a process that should have ended is taken for stuck; the first training takes a minute
LONGEST_PAUSE = 0.02
PRELOADED = (
    *("cache_tools.build.build", "cache_tools.cli.main", "comet.evaluate.evaluation", "datasets"),
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, what it printed, how long it took in seconds."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Clients:
    """Runs commands in forks of a process with this hub and this hub cache."""

    def __init__(self, endpoint: str, home: Path, offline: bool = False) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name[:3] != "HF_"}
        environment = kept | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, module: str, arguments: list[str], folder: Path) -> Ended:
        """`python -m module arguments…` in a folder, in which its output is kept, too."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([module, arguments, str(folder)]) + "\n")
        self.process.stdin.flush()
        started = time.monotonic()
        code = int(self.process.stdout.readline())
        outputs = [(folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        assert code != -signal.SIGALRM, f"still at work after {PATIENCE} s: {outputs}"
        return Ended(code, *outputs, seconds=time.monotonic() - started)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    for module in PRELOADED:
        __import__(module)
    for line in sys.stdin:
        module, arguments, folder = json.loads(line)
        if (child := os.fork()) == 0:
            command(module, arguments, folder)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def command(module: str, arguments: list[str], folder: str) -> None:
    """In the new process; ends it."""
    pause = time.sleep
    time.sleep = lambda seconds: pause(min(seconds, LONGEST_PAUSE))
    signal.alarm(PATIENCE)
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [module, *arguments]
    code: Any = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
