"""Pulling over https from a real TLS server: directly, through a proxy that only tunnels, and from one whose
certificate nobody vouches for."""

import datetime
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, socket

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers.small_caches import make_cache, small_recipe

from cache_tools import open_cache
from cache_tools.cli.main import main

NAMES = ("localhost", "cache.invalid")


def certificate(folder: Path) -> Path:
    """A key and a certificate for NAMES that signs itself, in one file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=now.year + 1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in NAMES]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """pytest's output is not the place."""


class Tunnel(Quiet):
    """A proxy: whatever host is asked for, it leads to `port`."""

    port = 0
    requests: list[str]

    def do_CONNECT(self) -> None:
        self.requests.append(self.path)
        if self.headers["Proxy-Authorization"] != "Basic bWU6c2VjcmV0":
            self.send_error(407)
            return
        with create_connection(("127.0.0.1", self.port)) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=carry, args=(there, self.connection))
            back.start()
            carry(self.connection, there)
            back.join()


def carry(source: socket, target: socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(1)
    except OSError:
        pass  # either side hung up, which ends a tunnel


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    root = tmp_path / "served" / "kin.zarr"
    make_cache(root, small_recipe())
    return root


@pytest.fixture
def trusted(tmp_path: Path, whole: Path) -> Iterator[tuple[int, Path]]:
    """Port of a TLS server of the folder that holds the cache, and its certificate."""
    path = certificate(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(whole.parent)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], path
    server.shutdown()
    server.server_close()


def test_a_pull_over_https(
    trusted: tuple[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, path = trusted
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    done = CliRunner().invoke(main, ["pull", f"https://localhost:{port}/kin.zarr", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.output
    assert open_cache(tmp_path / "mine").cache_id == open_cache(whole).cache_id


def test_a_proxy_only_carries_it(
    trusted: tuple[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, path = trusted
    kind = type("Bound", (Tunnel,), {"port": port, "requests": []})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    done = CliRunner().invoke(main, ["pull", "https://cache.invalid/kin.zarr", str(tmp_path / "mine")])
    assert "/kin.zarr/zarr.json: the proxy of https_proxy answered 407: it asks for USER:" in done.stderr
    monkeypatch.setenv("https_proxy", f"me:secret@127.0.0.1:{proxy.server_address[1]}")
    done = CliRunner().invoke(main, ["pull", "https://cache.invalid/kin.zarr", str(tmp_path / "mine")])
    proxy.shutdown()
    proxy.server_close()
    assert done.exit_code == 0, done.output
    assert open_cache(tmp_path / "mine").cache_id == open_cache(whole).cache_id
    assert set(kind.requests) == {"cache.invalid:443"}


def test_a_certificate_that_nobody_vouches_for(trusted: tuple[int, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["pull", f"https://localhost:{trusted[0]}/kin.zarr", str(tmp_path / "mine")])
    assert done.exit_code == 1
    assert "certificate" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mine").exists()
