"""Read and write files at any URL that fsspec supports: checked, within time limits, and no credentials in messages."""

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import fsspec

from cache_tools.errors import CometError
from cache_tools.places.foreign import is_left_by_system
from cache_tools.places.urls import HTTP, SSH, parse_url, printable_url, without_secrets
from cache_tools.sharing.locations import Blocks
from cache_tools.sharing.locations.http import HttpClient, StatusError
from cache_tools.sharing.mistaken import HEAD, PerhapsAbsent, mistaken
from cache_tools.sharing.retry import RetryPolicy, Unreachable

BLOCK = 2**20
S3 = ("s3", "s3a")
NAMES_IN_JSON = (b'"checksum"', b'"zarr_format"', b'"attributes"')  # of which each JSON file of a cache has one
ATOMIC_PUTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Schemes where a file appears at once or not at all, so that it needs no temporary name."""
PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "ssh": ("sshfs", "ssh"), "sftp": ("sshfs", "ssh")}
"""Scheme → the package that it needs, and the extra of this project that installs it."""
PARTIAL = ".part-"  # in temporary names, between the name of the file and a random suffix
NOT_FOUND = (404, 410)
TRANSIENT = (408, 425, 429)  # HTTP statuses below 500 that are worth another try
LASTING = (501, 505, 511)  # those from 500 that are not
PERMANENT = ("PermissionDenied", "HostKeyNotVerifiable", "NoCredentialsError")
"""Errors of optional libraries, by name, for which another try is useless."""


class Remote:
    """A location at a URL. Paths are relative to it; `name` is for messages.

    Raises CometError for a URL that is not supported, and Unreachable, in all methods, for failures that may pass.
    """

    def __init__(self, url: str, policy: RetryPolicy) -> None:
        self.parts, self.policy = parse_url(url), policy
        self.scheme = self.parts.scheme
        self.url = self.scheme + url[len(self.scheme) :]
        self.name = printable_url(self.url)
        if self.scheme not in fsspec.available_protocols():
            raise CometError(f"{self.name}: fsspec does not support {self.scheme}://", exit_code=2)
        package, extra = PACKAGES.get(self.scheme, ("fsspec", ""))
        if find_spec(package) is None:
            raise CometError(f"{self.name}: needs {package}; in the checkout, pip install '.[{extra}]'", exit_code=2)
        if self.scheme in HTTP:
            self.client = HttpClient(policy.timeout)
            return
        with self._errors(""):
            self.fs, self.root = fsspec.url_to_fs(self.url.rstrip("/"), **self._connection_options())

    def _connection_options(self) -> dict[str, Any]:
        """Return timeouts, and the checks that a library leaves to its caller."""
        timeout = self.policy.timeout
        options: dict[str, Any] = {"skip_instance_cache": True}
        if self.scheme in SSH:  # (): check host keys against ~/.ssh/known_hosts, which sshfs does not by default
            alive = {"keepalive_interval": timeout / 3, "keepalive_count_max": 3}
            return options | {"known_hosts": (), "connect_timeout": timeout, "login_timeout": timeout} | alive
        if self.scheme.startswith("s3"):
            waits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
            return options | {"use_listings_cache": False, "config_kwargs": waits}
        return options

    def close(self) -> None:
        """End reads that are waiting in other threads, where the library can; else they end with the time limit."""
        if self.scheme in HTTP:
            self.client.close()

    def _address(self, path: str) -> str:
        """Return the name of a file for the file system, or its URL for the HTTP client."""
        if self.scheme not in HTTP:
            return f"{self.root}/{path}"
        return urlunsplit(self.parts._replace(path=f"{self.parts.path.rstrip('/')}/{path}"))

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a small file, None if there is none. Raises CometError if it has more than `limit` bytes, and
        PerhapsAbsent for an answer that is no file of a cache.

        The time limit is that of an empty file.
        """
        data = bytearray()
        try:
            with closing(self._blocks(path, 0)) as blocks:
                for block in blocks:
                    data += block
                    if len(data) > limit:
                        raise CometError(f"{self.name}/{path}: more than {limit} bytes, the limit; not a sound cache")
        except FileNotFoundError:
            return None
        is_ours = any(name in data for name in NAMES_IN_JSON)
        if self.scheme in HTTP and (what := mistaken(bytes(data[:HEAD]), is_ours)):
            raise PerhapsAbsent(f"{self.name}/{path}: {what}")
        return bytes(data)

    def blocks(self, path: str, size: int) -> Blocks:
        """Yield the content of a file, whatever its size; `size` bytes are expected and set the time limit.

        Raises CometError if there is no such file, or it is too slow.
        """
        try:
            yield from self._blocks(path, size)
        except FileNotFoundError:
            raise CometError(
                f"{self.name}/{path}: not there, though the ledger lists it; the cache there is damaged"
            ) from None

    def _blocks(self, path: str, size: int) -> Blocks:
        """Raise FileNotFoundError if there is no file."""
        time_limit = self.policy.time_limit(size)
        deadline = time.monotonic() + time_limit
        address = self._address(path)
        source = self.client.blocks(address, time_limit, size) if self.scheme in HTTP else self._read(address)
        with self._errors(path), closing(source) as blocks:
            for block in blocks:
                yield block
                if time.monotonic() > deadline:
                    raise CometError(
                        f"{self.name}/{path}: slower than {self.policy.min_rate / 1024:.0f} KiB a second; run the same "
                        "command again to continue"
                    )

    def _read(self, address: str) -> Blocks:
        options = {"block_size": 0} if self.scheme == "hf" else {}  # in one piece, not in ranges
        timeout = {"timeout": self.policy.timeout} if self.scheme in SSH else {}
        with self.fs.open(address, "rb", **options) as file:
            while block := file.read(BLOCK, **timeout):
                yield block

    def size_of(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        with self._errors(path):
            try:
                return int(self.fs.info(self._address(path))["size"])
            except FileNotFoundError:
                return None

    def has_exactly(self, path: str, size: int, sha256: str) -> bool:
        """Return False: to compare a remote file is to read it."""
        return False

    def require_writable(self) -> None:
        """Raise CometError for a kind of URL that cannot be written to."""
        if self.scheme in HTTP:
            raise CometError(f"{self.name}: HTTP is read-only; push to a folder that the server serves", exit_code=2)
        if self.scheme == "hf":
            raise CometError(
                f"{self.name}: every file would be a commit of its own; push to a folder, then `hf upload-large-folder "
                "NAME FOLDER --repo-type dataset`",
                exit_code=2,
            )

    def is_empty(self) -> bool:
        """Return whether there is nothing, or only what systems and stopped transfers leave."""
        with self._errors(""):
            try:
                names = [path.rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]
                return all(PARTIAL in name or is_left_by_system(name) for name in names)
            except FileNotFoundError:
                return True

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Do nothing: an unfinished file is invisible, or under a temporary name beside its own."""
        yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Do nothing: URLs have no locks. A caller reads back what it has written."""
        yield

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Write a file, which gets its name only once all blocks have arrived. Also raises the errors of `blocks`."""
        try:
            self._write(path, blocks)
        except FileNotFoundError:
            raise CometError(
                f"{self.name}/{path}: cannot be written, there is no such bucket or disk; check the URL"
            ) from None

    def _write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Raise FileNotFoundError if the bucket or disk does not exist."""
        final = self._address(path)
        if self.scheme in ATOMIC_PUTS:
            data = b"".join(blocks)
            with self._errors(path):
                self.fs.pipe_file(final, data)
            return
        staged = f"{final}{PARTIAL}{uuid.uuid4().hex}"
        with self._errors(path):
            self.fs.makedirs(final.rpartition("/")[0], exist_ok=True)
            try:
                with self.fs.open(staged, "wb") as file:
                    for block in blocks:
                        file.write(block)
                self.fs.mv(staged, final)
            except BaseException:
                with suppress(Exception):  # else it stays, under a name that no cache uses
                    self.fs.rm_file(staged)
                raise

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turn every error of a library into CometError or Unreachable, without credentials, and "not found" into
        FileNotFoundError."""
        where = f"{self.name}/{path}" if path else self.name
        try:
            yield
        except (CometError, FileNotFoundError, GeneratorExit):
            raise
        except Exception as error:
            if _http_status(error) in NOT_FOUND:
                raise FileNotFoundError(where) from None
            reason = self._reason(error)
            if _is_permanent(error):
                is_denied = _http_status(error) == 403 or (self.scheme in S3 and isinstance(error, PermissionError))
                kind = PerhapsAbsent if is_denied else CometError
                raise kind(f"{where}: {reason}; check the URL and your credentials") from None
            raise Unreachable(f"{where}: {reason}") from None

    def _reason(self, error: Exception) -> str:
        if isinstance(error, StatusError):
            return str(error)
        if status := _http_status(error):
            return f"the server answered {status}"
        message = getattr(error, "strerror", None) or f"{type(error).__name__} {error}".strip()
        text = without_secrets(message)
        for secret in _secrets(self.url):
            text = text.replace(secret, "…")
        return text[:200]


def _secrets(url: str) -> list[str]:
    """Return the password, or a user without one, the query and its values, raw and decoded, as far as the URL has
    them; the longest first."""
    parts = urlsplit(url)
    values = [value for _, value in parse_qsl(parts.query)]
    secret = parts.password or (parts.scheme in HTTP and parts.username) or ""
    found = {secret, unquote(secret), parts.query, *values}
    return sorted(filter(None, found), key=len, reverse=True)


def _http_status(error: Exception) -> int | None:
    """Return the HTTP status that a library raised as an error, if it did."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_permanent(error: Exception) -> bool:
    """Return whether another try would fail in the same way."""
    if status := _http_status(error):
        return (status < 500 and status not in TRANSIENT) or status in LASTING
    kinds = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, ImportError)
    return isinstance(error, kinds) or type(error).__name__ in PERMANENT
