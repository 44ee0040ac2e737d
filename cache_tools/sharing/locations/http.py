"""Whole files from web servers, over connections that stay open from file to file.

Neither library at hand replaces this client. Processor time ÷ ours for 200 files of 20 kB and 4 of 50 MB, from nginx on
the loopback address by eight threads: httpx 3.3 and 1.9, fsspec (aiohttp) in blocks 2.4 and 1.4, in memory 1.2 and 2.4
(`python benchmarks/sharing.py --only clients`). httpx has no time limit for a whole file, and closing it leaves a read
in another thread waiting.
"""

import http.client
import math
import netrc
import re
import socket
import ssl
import time
import weakref
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from threading import Lock, Thread
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from cache_tools.errors import CometError
from cache_tools.places.urls import printable_url
from cache_tools.sharing.locations import Blocks
from cache_tools.sharing.locations.proxies import PORTS, Proxy, basic, proxy_for

BLOCK = 2**18
WATCH_SECONDS = 0.25
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
WITH_FILE = (200, 203)  # the second from a proxy that says so
UNPACKED = ("gzip", "x-gzip", "deflate")
MEANING = {
    403: ", as some do for what is not there",
    511: ": this network asks for a login first, in a browser",
}


class StatusError(Exception):
    """An answer that is neither the file nor "not found", perhaps that of a proxy."""

    def __init__(self, status: int, proxy: Proxy | None) -> None:
        through = f", through the proxy of {proxy.variable}," if proxy else ""
        said = f"the server{through} answered {status}{MEANING.get(status, '')}"
        if proxy and status == 407:
            said = f"the proxy of {proxy.variable} answered 407: it asks for USER:PASSWORD@ before its host"
        super().__init__(said)
        self.status = status


class Connection(http.client.HTTPConnection):
    """Keeps its socket until the last byte of an answer, so that another thread can shut it down."""

    is_reused = False
    raw_socket: socket.socket | None = None
    proxy: Proxy | None = None

    def connect(self) -> None:
        """Raise StatusError if a proxy refuses to connect. Errors of a connection to a proxy name it."""
        try:
            super().connect()
        except OSError as error:
            if self.proxy is None or isinstance(error, ssl.SSLError):
                raise
            if refused := re.search(r"^Tunnel connection failed: (\d+)", str(error)):
                raise StatusError(int(refused[1]), self.proxy) from error
            raise ConnectionError(f"{error.strerror or error}, at the proxy of {self.proxy.variable}") from error
        self.raw_socket = self.sock

    def __del__(self) -> None:
        self.close()


class SecureConnection(Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class HttpClient:
    """An HTTP client for several threads. `timeout`: seconds a server may be silent."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.is_closed = False
        self._idle: dict[tuple[str, str, int], list[Connection]] = defaultdict(list)
        self._deadlines: dict[Connection, float] = {}
        self._lock = Lock()
        Thread(target=_watch, args=(weakref.ref(self),), daemon=True).start()

    def close(self) -> None:
        """End all reads that are waiting in other threads, with an error there."""
        self.is_closed = True
        self.abort_overdue(math.inf)

    def abort_overdue(self, now: float) -> None:
        """End the reads whose deadline is before `now`, with an error in their threads."""
        with self._lock:
            overdue = [connection for connection, deadline in self._deadlines.items() if now > deadline]
        for connection in overdue:
            if connection.raw_socket is not None:
                with suppress(OSError):  # closed meanwhile
                    connection.raw_socket.shutdown(socket.SHUT_RDWR)

    def blocks(self, url: str, time_limit: float, size: int = 0) -> Blocks:
        """Yield the content of the file at a URL, which must be complete within `time_limit` seconds, and have `size`
        bytes or more if the server does not say how many.

        Raises FileNotFoundError if there is none, StatusError for any other answer, OSError and HTTPException if the
        connection breaks, and CometError for a redirect to another kind of URL or an encoding that cannot be undone.
        """
        first = parts = urlsplit(url)
        for _ in range(MAX_REDIRECTS + 1):
            connection = self._acquire(parts)
            with self._lock:
                self._deadlines[connection] = time.monotonic() + time_limit
            is_read, answer = False, None
            try:
                is_same_origin = _origin(parts) == _origin(first)
                answer = self._get(connection, parts, _authorization(first) if is_same_origin else {})
                if answer.status not in REDIRECTS:
                    if answer.status in (404, 410):
                        raise FileNotFoundError(printable_url(url))
                    if answer.status not in WITH_FILE:
                        raise StatusError(answer.status, connection.proxy)
                    yield from _decoded(_raw(answer, size), answer, printable_url(url))
                    is_read = True
                    return
                parts = _redirect_target(parts, answer.headers.get("Location", ""))
            finally:
                with self._lock:
                    del self._deadlines[connection]
                if is_read:
                    self._release(parts, connection)
                else:
                    if answer is not None:
                        answer.close()
                    connection.close()
        raise CometError(f"{printable_url(url)}: redirects more than {MAX_REDIRECTS} times; not a server to pull from")

    def _acquire(self, parts: SplitResult) -> Connection:
        """Return an idle or new connection, through the proxy of the environment if there is one."""
        with self._lock:
            if idle := self._idle[_origin(parts)]:
                return idle.pop()
        proxy = proxy_for(parts)
        host, port = (proxy.host, proxy.port) if proxy else _origin(parts)[1:]
        if parts.scheme == "http":
            connection = Connection(host, port, timeout=self.timeout)
        else:
            connection = SecureConnection(host, port, timeout=self.timeout, context=ssl.create_default_context())
            if proxy:
                connection.set_tunnel(*_origin(parts)[1:], proxy.headers)
        connection.proxy = proxy
        return connection

    def _release(self, parts: SplitResult, connection: Connection) -> None:
        connection.is_reused = True
        with self._lock:
            self._idle[_origin(parts)].append(connection)

    def _get(self, connection: Connection, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a GET, asked again once if the server had closed the idle connection."""
        path, query = (quote(text, safe="/%:@!$&'()*+,;=~?") for text in (parts.path or "/", parts.query))
        target = urlunsplit(("", "", path, query, ""))
        if parts.scheme == "http" and connection.proxy:
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
            headers = headers | connection.proxy.headers

        def get() -> http.client.HTTPResponse:
            connection.request("GET", target, headers={"User-Agent": "comet-cache"} | headers)
            return connection.getresponse()

        try:
            return get()
        except (http.client.RemoteDisconnected, ConnectionError):
            if self.is_closed or not connection.is_reused:
                raise
        connection.close()
        connection.is_reused = False
        return get()


def _watch(client: "weakref.ref[HttpClient]") -> None:
    """Enforce the time limits until the client is gone: a byte now and then would never trigger a socket's timeout.

    Of a closed client end also the reads that were only connecting when it was closed.
    """
    while (alive := client()) is not None:
        alive.abort_overdue(math.inf if alive.is_closed else time.monotonic())
        del alive
        time.sleep(WATCH_SECONDS)


def _authorization(parts: SplitResult) -> dict[str, str]:
    """Return the header with user and password of the URL, else of ~/.netrc, else none."""
    user, password = parts.username, parts.password
    if user is None:
        try:
            found = netrc.netrc().authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            found = None
        if not found:
            return {}
        user, password = found[0], found[2]
    return {"Authorization": basic(unquote(user), unquote(password or ""))}


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    return parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme]


def _raw(answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
    """Yield the body of an answer. Raises IncompleteRead if it breaks off, as far as that can be told."""
    is_framed, found = answer.chunked or answer.length is not None, 0
    while block := answer.read(BLOCK):
        found += len(block)
        yield block
    if answer.length or (found < size and not is_framed):
        raise http.client.IncompleteRead(b"", answer.length)


def _decoded(blocks: Iterable[bytes], answer: http.client.HTTPResponse, name: str) -> Iterator[bytes]:
    """Yield the body, decoded if it came in an encoding that was not requested. Raises CometError if that cannot be
    undone."""
    coding = answer.headers.get("Content-Encoding", "").strip().lower()
    transfer = answer.headers.get("Transfer-Encoding", "chunked").strip().lower()
    if coding in ("", "identity") and transfer == "chunked":
        yield from blocks
        return
    shown = (coding if transfer == "chunked" else transfer)[:40]
    problem = CometError(
        f"{name}: the server, or a proxy on the way, sends it in an encoding that was not requested ({shown}) and "
        "cannot be undone; switch that off for the files of caches"
    )
    if coding not in UNPACKED or transfer != "chunked":
        raise problem
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, as its header says
    try:
        for packed in blocks:
            rest = packed
            while rest:
                yield unpack.decompress(rest, BLOCK)
                rest = unpack.unconsumed_tail
        yield unpack.flush()
    except zlib.error:
        raise problem from None
    if not unpack.eof:
        raise problem


def _redirect_target(parts: SplitResult, location: str) -> SplitResult:
    """Return where a redirect leads. Raises CometError unless that is a URL of the same scheme, or https."""
    url = urlunsplit(parts)
    try:
        target = urlsplit(urljoin(url, location))
        is_usable = bool(target.hostname) and target.port != 0
    except ValueError:
        target, is_usable = urlsplit(""), False
    if not location or not is_usable or target.scheme not in (parts.scheme, "https"):
        to = f"{target.scheme}:" if location and target.scheme else "nowhere"
        raise CometError(f"{printable_url(url)}: redirects to {to}, which is refused; not a server to pull from")
    return target
