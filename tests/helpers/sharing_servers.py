"""Real servers on the loopback address, each on a free port of its own, for as long as a test session.

nginx:  `nginx -c CONFIG`, one process in the foreground, serving a folder                     (Debian: nginx-light)
sshd:   `sshd -D -f CONFIG`, with host key and user key of its own, and sftp inside the process (openssh-server)
s3:     moto's server in a thread of this process, an implementation of the S3 protocol        (pip: moto[server])

A program that is not installed skips the test, but not in CI (environment variable CI), where it fails.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 20.0  # seconds until a server must answer
BUCKET = "comet"
KEYS = {
    "AWS_ACCESS_KEY_ID": "an-access-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Server:
    """Where caches are pushed to and pulled from, without their names; `environment` is what clients need."""

    push: str
    pull: str
    environment: dict[str, str]


def program(name: str) -> str:
    """The path of an installed program. Skips without it, and fails in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed (.ci/run installs it)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers on its port."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as running:
        try:
            end = time.monotonic() + PATIENCE
            while not answers(port):
                if running.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"{command[0]} does not answer on port {port}: {log.read_text()[-500:]}")
                time.sleep(0.05)
            yield running
        finally:
            running.terminate()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def folder(work: Path) -> Iterator[Server]:
    yield Server(str(work / "files"), f"file://{work}/files", {})


@contextmanager
def nginx(work: Path, files: Path | None = None) -> Iterator[Server]:
    port, files = free_port(), files or work / "files"
    files.mkdir(parents=True, exist_ok=True)
    with nginx_process(work, files, port):
        yield Server(str(files), f"http://127.0.0.1:{port}", {})


@contextmanager
def nginx_process(work: Path, files: Path, port: int) -> Iterator[None]:
    """nginx serving a folder on a port; `work` is for its own files."""
    work.mkdir(exist_ok=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {work}/{kind}; " for kind in kinds)
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user} daemon off; master_process off; pid {work}/pid; error_log {work}/errors; events {{}}\n"
        f"http {{ access_log off; {temporary} sendfile on; max_ranges 0;\n"
        f"server {{ listen 127.0.0.1:{port}; root {files}; }} }}\n"
    )
    with process([program("nginx"), "-c", str(work / "nginx.conf"), "-e", str(work / "errors")], port, work / "log"):
        yield


@contextmanager
def sshd(work: Path) -> Iterator[Server]:
    port, home = free_port(), work / "home"
    (home / ".ssh").mkdir(parents=True)
    (work / "files").mkdir()
    keygen = program("ssh-keygen")
    for key in (work / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copyfile(home / ".ssh" / "id_ed25519.pub", work / "authorized_keys")
    host = " ".join((work / "host_key.pub").read_text().split()[:2])
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    (work / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {work}/host_key\nPidFile {work}/pid\nUsePAM no\n"
        f"AuthorizedKeysFile {work}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it goes to be without privileges
    command = [program("sshd"), "-D", "-e", "-f", str(work / "sshd_config")]
    with process(command, port, work / "log"):
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{work}/files"
        yield Server(url, url.replace("ssh://", "sftp://"), {"HOME": str(home)})


@contextmanager
def s3(work: Path) -> Iterator[Server]:
    import boto3
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        environment = KEYS | {"AWS_ENDPOINT_URL": url}
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield Server(f"s3://{BUCKET}/caches", f"s3://{BUCKET}/caches", environment)
    finally:
        server.stop()


SERVERS: dict[str, Callable[[Path], "contextmanager[Server]"]] = {
    "folder": folder,
    "nginx": nginx,
    "sshd": sshd,
    "s3": s3,
}
SLOW_SERVERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("sshd", "s3")]
