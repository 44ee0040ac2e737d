"""Whole files from web servers, over connections that stay open from file to file.

Neither library at hand replaces this client. Processor time ÷ ours for 200 files of 20 kB and 4 of 50 MB, from nginx on
the loopback address by eight threads: httpx 3.3 and 1.9, fsspec (aiohttp) in blocks 2.4 and 1.4, in memory 1.2 and 2.4
(`python benchmarks/sharing.py --only clients`). httpx has no time limit for a whole file, and closing it leaves a read
in another thread waiting.
"""

import base64
import http.client
import math
import netrc
import re
import socket
import ssl
import time
import urllib.request
import weakref
from collections import defaultdict
from contextlib import suppress
from threading import Lock, Thread
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from cache_tools.errors import CometError
from cache_tools.sharing.locations import Blocks

BLOCK = 2**18
WATCH_SECONDS = 0.25
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


class StatusError(Exception):
    """An answer that is neither the file nor "not found"."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class Connection(http.client.HTTPConnection):
    """Keeps its socket until the last byte of an answer, so that another thread can shut it down."""

    is_reused = False
    raw_socket: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
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
        self._idle: dict[tuple[str, str], list[Connection]] = defaultdict(list)
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

    def blocks(self, url: str, time_limit: float) -> Blocks:
        """Yield the content of the file at a URL, which must be complete within `time_limit` seconds.

        Raises FileNotFoundError if there is none, StatusError for any other answer, OSError and HTTPException if the
        connection breaks, and CometError for a redirect to another kind of URL.
        """
        first = parts = urlsplit(url)
        for _ in range(MAX_REDIRECTS + 1):
            connection = self._acquire(parts)
            with self._lock:
                self._deadlines[connection] = time.monotonic() + time_limit
            is_read, answer = False, None
            try:
                is_same_origin = parts[:2] == first[:2]
                answer = self._get(connection, parts, _authorization(parts) if is_same_origin else {})
                if answer.status not in REDIRECTS:
                    if answer.status in (404, 410):
                        raise FileNotFoundError(redacted(url))
                    if answer.status != 200:
                        raise StatusError(answer.status)
                    while block := answer.read(BLOCK):
                        yield block
                    if answer.length:
                        raise http.client.IncompleteRead(b"", answer.length)
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
        raise CometError(f"{redacted(url)}: redirects more than {MAX_REDIRECTS} times; not a server to pull from")

    def _acquire(self, parts: SplitResult) -> Connection:
        """Return an idle or new connection, through the proxy of the environment if there is one."""
        with self._lock:
            if idle := self._idle[parts[:2]]:
                return idle.pop()
        host, port = parts.hostname or "", parts.port
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
        via = urlsplit(proxy) if proxy else None
        to, to_port = (via.hostname or "", via.port) if via else (host, port)
        if parts.scheme == "http":
            return Connection(to, to_port, timeout=self.timeout)
        secure = SecureConnection(to, to_port, timeout=self.timeout, context=ssl.create_default_context())
        if via:
            secure.set_tunnel(host, port, _authorization(via))
        return secure

    def _release(self, parts: SplitResult, connection: Connection) -> None:
        connection.is_reused = True
        with self._lock:
            self._idle[parts[:2]].append(connection)

    def _get(self, connection: Connection, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a GET, asked again once if the server had closed the idle connection."""
        target = urlunsplit(("", "", quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"), parts.query, ""))
        if parts.scheme == "http" and connection.host != parts.hostname:  # a proxy
            target = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], target, "", ""))

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
    """Enforce the time limits until the client is gone: a byte now and then would never trigger a socket's timeout."""
    while (alive := client()) is not None:
        alive.abort_overdue(time.monotonic())
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
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _redirect_target(parts: SplitResult, location: str) -> SplitResult:
    """Return where a redirect leads. Raises CometError unless that is a URL of the same scheme, or https."""
    url = urlunsplit(parts)
    target = urlsplit(urljoin(url, location))
    if not location or target.scheme not in (parts.scheme, "https"):
        to = f"{target.scheme}:" if location else "nowhere"
        raise CometError(f"{redacted(url)}: redirects to {to}, which is refused; not a server to pull from")
    return target


def redacted(url: str) -> str:
    """Return the URL without user, password, query and fragment; on the hub the part before @ is a name and stays."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "hf":
        return url
    return scheme + separator + re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[2].rstrip("/")
