"""An http server that serves a folder, and does to single files what broken and hostile servers do."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

BLOCK = b"\0" * 2**16
DRIP = 0.02  # seconds from byte to byte
Mischief = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """`mischief` is what befalls a path, so many times (None: always); `requests` counts those for each path."""

    daemon_threads = True
    request_queue_size = 64
    address = "127.0.0.1"

    def __init__(self, files: Path) -> None:
        super().__init__((self.address, 0), Handler)
        self.files = files
        self.mischief: dict[str, tuple[Mischief, int | None]] = {}
        self.requests: Counter[str] = Counter()
        self.headers_seen: list[dict[str, str]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no news here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.lstrip("/")  # whole URLs are asked of proxies
        self.server.requests[path] += 1
        self.server.headers_seen.append(dict(self.headers) | {"path": self.path})
        mischief, times = self.server.mischief.get(path, (honest, None))
        if times is not None and self.server.requests[path] > times:
            mischief = honest
        file = self.server.files / path
        if mischief is honest and not file.is_file():
            self.send_error(404)
            return
        mischief(self, file.read_bytes() if file.is_file() else b"")

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def trickle(self, data: Iterator[bytes], pause: float) -> None:
        for block in data:
            if self.server.closing.wait(pause):
                return
            self.wfile.write(block)
            self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def honest(handler: Handler, data: bytes) -> None:
    handler.start(200, Content_Length=len(data))
    handler.wfile.write(data)


def hanging_up(handler: Handler, data: bytes) -> None:
    """Says nothing of it, as servers do with connections that were idle for long."""
    honest(handler, data)
    handler.close_connection = True


def forever(block: bytes) -> Iterator[bytes]:
    while True:
        yield block


def endless(handler: Handler, data: bytes) -> None:
    handler.start(200)
    handler.wfile.write(data)
    handler.trickle(forever(BLOCK), 0.0)


def truncated(handler: Handler, data: bytes) -> None:
    handler.start(200, Content_Length=len(data))
    handler.wfile.write(data[: len(data) // 2])


def shorter_than_the_ledger(handler: Handler, data: bytes) -> None:
    honest(handler, data[:-1])


def longer_than_the_ledger(handler: Handler, data: bytes) -> None:
    honest(handler, data + b"!")


def wrong_bytes(handler: Handler, data: bytes) -> None:
    honest(handler, data[:-1] + bytes([data[-1] ^ 1]))


def huge(handler: Handler, data: bytes) -> None:
    honest(handler, b"[" * (5 * 2**20))


def page(handler: Handler, data: bytes) -> None:
    honest(handler, b"<!doctype html><title>Log in</title>")


def sending(data: bytes) -> Mischief:
    return lambda handler, _: honest(handler, data)


def encoded(name: str, encode: Callable[[bytes], bytes]) -> Mischief:
    """Compressed for a client that never asked."""

    def answer(handler: Handler, data: bytes) -> None:
        body = encode(data)
        handler.start(200, Content_Encoding=name, Content_Length=len(body))
        handler.wfile.write(body)

    return answer


def transferred(name: str) -> Mischief:
    return lambda handler, data: handler.start(200, Transfer_Encoding=name)


def chunked(handler: Handler, data: bytes) -> None:
    handler.start(200, Transfer_Encoding="chunked")
    for part in (data[:7], data[7:]):
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if part else b"")
    handler.wfile.write(b"0\r\n\r\n")


def unframed(handler: Handler, data: bytes) -> None:
    """As far as the connection lasts, without a length."""
    handler.start(200, Connection="close")
    handler.wfile.write(data)
    handler.close_connection = True


def cut_without_a_length(handler: Handler, data: bytes) -> None:
    unframed(handler, data[: len(data) // 2])


def reset(handler: Handler, data: bytes) -> None:
    handler.start(200, Content_Length=len(data))
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    time.sleep(DRIP)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def slow_body(handler: Handler, data: bytes) -> None:
    handler.start(200, Content_Length=len(data))
    handler.trickle((bytes([byte]) for byte in data), 5 * DRIP)


def slow_headers(handler: Handler, data: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.trickle(forever(b"X: x\r\n"), 5 * DRIP)


def silent(handler: Handler, data: bytes) -> None:
    handler.server.closing.wait()


def answering(status: int) -> Mischief:
    return lambda handler, data: handler.start(status, Content_Length=0)


def redirecting(location: str) -> Mischief:
    return lambda handler, data: handler.start(302, Location=location, Content_Length=0)


@contextmanager
def serving(files: Path) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
