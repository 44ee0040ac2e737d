"""Bytes in and out of any URL that fsspec knows. Nothing from outside is believed, waited for without end, or printed
with its credentials."""

import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import fsspec
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.sharing.locations.http import Blocks, Web, shown

BLOCK = 2**20
HTTP = ("http", "https")
SSH = ("ssh", "sftp")
WHOLE_PUTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Where a file appears at once or not at all, so that it needs no temporary name."""
NEEDS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "ssh": ("sshfs", "ssh"), "sftp": ("sshfs", "ssh")}
"""Scheme → the package that speaks it, and the extra of this project that brings it."""
PART = ".part-"  # between the name of a file and what tells its temporary names apart
GONE = (404, 410)
PASSING = (408, 425, 429)  # HTTP 4xx that may go away by themselves
NEVER = ("PermissionDenied", "HostKeyNotVerifiable", "NoCredentialsError")
"""Errors of libraries that need not be here, which another try does not mend."""


class Unreachable(CometError):
    """A failure that another try may mend: `what` has failed, and where."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; run the same command again to go on")
        self.what = what


def rate_limited(every: float = 5.0) -> Callable[[str], None]:
    """What writes lines to stderr, of those that come faster than `every` so many seconds the first."""
    last = -every

    def say(line: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= every:
            last = now
            tqdm.write(line, file=sys.stderr)

    return say


@dataclass(frozen=True)
class RetryPolicy:
    """How long a server may take: `seconds` without a byte, then for a whole file at `slowest` bytes a second.

    After a failure that may pass there are `retries` more tries, the first `pause` seconds later, each next one after
    twice the time; of waits that a person notices `say` is told.
    """

    seconds: float = 30.0
    slowest: float = 16 * 2**10
    retries: int = 5
    pause: float = 1.0
    say: Callable[[str], object] = field(default_factory=rate_limited, compare=False)

    def whole(self, size: int) -> float:
        """Seconds that a file of this size may take."""
        return 2 * self.seconds + size / self.slowest


class Remote:
    """A cache's location at a URL. Paths are relative to it; `name` is how it is shown.

    Raises CometError for a URL that cannot be one, and Unreachable while nobody answers.
    """

    def __init__(self, url: str, policy: RetryPolicy) -> None:
        self.url, self.policy = url.rstrip("/"), policy
        self.scheme = url.partition("://")[0]
        self.name = shown(self.url)
        if "::" in url:
            raise CometError(f"{self.name}: chained URLs are not supported; give the one of the cache", exit_code=2)
        if self.scheme not in fsspec.available_protocols():
            raise CometError(f"{self.name}: fsspec does not know {self.scheme}://", exit_code=2)
        package, extra = NEEDS.get(self.scheme, ("fsspec", ""))
        if find_spec(package) is None:
            raise CometError(f"{self.name}: needs {package}; pip install 'comet-distill[{extra}]'", exit_code=2)
        if self.scheme in HTTP:
            self.web = Web(policy.seconds)
            return
        with self._errors(""):
            self.fs, self.root = fsspec.url_to_fs(self.url, **self._connection())

    def _connection(self) -> dict[str, Any]:
        """What the file system is opened with: timeouts, and the checks that its library leaves to the caller."""
        seconds = self.policy.seconds
        options: dict[str, Any] = {"skip_instance_cache": True}
        if self.scheme in SSH:  # (): those of ~/.ssh/known_hosts, which sshfs would not look at
            alive = {"keepalive_interval": seconds / 3, "keepalive_count_max": 3}
            return options | {"known_hosts": (), "connect_timeout": seconds, "login_timeout": seconds} | alive
        if self.scheme.startswith("s3"):
            waits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
            return options | {"use_listings_cache": False, "config_kwargs": waits}
        return options

    def close(self) -> None:
        """Ends what threads wait for, where that is possible; else they wait as long as `policy` lets them."""
        if self.scheme in HTTP:
            self.web.close()

    def at(self, path: str) -> str:
        """The file system's name of a file."""
        if self.scheme not in HTTP:
            return f"{self.root}/{path}"
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))

    def read(self, path: str, limit: int) -> bytes | None:
        """A small file; None if it is not there. Raises CometError when it has more than `limit` bytes.

        It is given no more time than a file without content.
        """
        data = bytearray()
        try:
            with closing(self._blocks(path, 0)) as blocks:
                for block in blocks:
                    data += block
                    if len(data) > limit:
                        raise CometError(
                            f"{self.name}/{path}: larger than the {limit} bytes it may have; not a sound cache"
                        )
        except FileNotFoundError:
            return None
        return bytes(data)

    def blocks(self, path: str, size: int) -> Blocks:
        """The content of a file that should have `size` bytes, in blocks, however long it is.

        Raises CometError when it is not there or comes too slowly.
        """
        try:
            yield from self._blocks(path, size)
        except FileNotFoundError:
            raise CometError(
                f"{self.name}/{path}: not there, though the ledger names it; the cache there is damaged"
            ) from None

    def _blocks(self, path: str, size: int) -> Blocks:
        """Raises FileNotFoundError when there is no file."""
        total = self.policy.whole(size)
        end = time.monotonic() + total
        source = self.web.blocks(self.at(path), total) if self.scheme in HTTP else self._read(path)
        with self._errors(path), closing(source) as blocks:
            for block in blocks:
                yield block
                if time.monotonic() > end:
                    raise CometError(
                        f"{self.name}/{path}: comes at less than {self.policy.slowest / 1024:.0f} KiB a second; run "
                        "the same command again to go on"
                    )

    def _read(self, path: str) -> Blocks:
        options = {"block_size": 0} if self.scheme == "hf" else {}  # in one piece, not in ranges
        timeout = {"timeout": self.policy.seconds} if self.scheme in SSH else {}
        with self.fs.open(self.at(path), "rb", **options) as file:
            while block := file.read(BLOCK, **timeout):
                yield block

    def size_of(self, path: str) -> int | None:
        """The size of a file, None if it is not there."""
        with self._errors(path):
            try:
                return int(self.fs.info(self.at(path))["size"])
            except FileNotFoundError:
                return None

    def has_exactly(self, path: str, size: int, sha256: str) -> bool:
        """Never proven from afar."""
        return False

    def require_writable(self) -> None:
        """Raises CometError where nobody can write."""
        if self.scheme in HTTP:
            raise CometError(
                f"{self.name}: http servers are only read from; push to a folder that one serves", exit_code=2
            )
        if self.scheme == "hf":
            raise CometError(
                f"{self.name}: every file would be a commit of its own; push to a folder, then `hf upload-large-folder "
                "NAME FOLDER --repo-type dataset`",
                exit_code=2,
            )

    def is_empty(self) -> bool:
        """Whether nothing lies there but what a stopped transfer may have left of its first file."""
        with self._errors(""):
            try:
                names = [path.rpartition("/")[2] for path in self.fs.ls(self.root, detail=False)]
                return all(PART in name for name in names)
            except FileNotFoundError:
                return True

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Nothing to prepare: a file on its way is nowhere, or beside its name."""
        yield

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """A file that has its name only when all blocks have come. Raises what `blocks` raises, and as all here."""
        try:
            self._write(path, blocks)
        except FileNotFoundError:
            raise CometError(
                f"{self.name}/{path}: cannot be written, there is no such bucket or disk; check the URL"
            ) from None

    def _write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Raises FileNotFoundError where there is nothing to write to."""
        final = self.at(path)
        if self.scheme in WHOLE_PUTS:
            data = b"".join(blocks)
            with self._errors(path):
                self.fs.pipe_file(final, data)
            return
        aside = f"{final}{PART}{uuid.uuid4().hex}"
        with self._errors(path):
            self.fs.makedirs(final.rpartition("/")[0], exist_ok=True)
            try:
                with self.fs.open(aside, "wb") as file:
                    for block in blocks:
                        file.write(block)
                self.fs.mv(aside, final)
            except BaseException:
                self._drop(aside)
                raise

    def _drop(self, path: str) -> None:
        """Removes what was half written; where nobody answers any more it stays, under a name that is no cache's."""
        try:
            self.fs.rm_file(path)
        except Exception:
            return

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Every error of a library as one of ours, without what the URL holds of secrets; that there is no such file as
        FileNotFoundError."""
        where = f"{self.name}/{path}" if path else self.name
        try:
            yield
        except (CometError, FileNotFoundError, GeneratorExit):
            raise
        except Exception as error:
            if http_status(error) in GONE:
                raise FileNotFoundError(where) from None
            reason = self._reason(error)
            if is_final(error):
                raise CometError(f"{where}: {reason}; check the URL, and what its tool needs to log in") from None
            raise Unreachable(f"{where}: {reason}") from None

    def _reason(self, error: Exception) -> str:
        if status := http_status(error):
            return f"the server answered {status}"
        said = getattr(error, "strerror", None) or f"{type(error).__name__} {error}".strip()
        text = re.sub(r"\w+://\S+", lambda found: shown(found[0]), said)
        for secret in secrets(self.url):
            text = text.replace(secret, "…")
        return text[:200]


def secrets(url: str) -> list[str]:
    parts = urlsplit(url)
    values = [
        parts.password,
        unquote(parts.password or ""),
        parts.query,
        *(value for _, value in parse_qsl(parts.query)),
    ]
    return [value for value in values if value]


def http_status(error: Exception) -> int | None:
    """The status of an answer that a library took for an error."""
    found = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def is_final(error: Exception) -> bool:
    """Whether another try would end the same way."""
    if status := http_status(error):
        return 400 <= status < 500 and status not in PASSING
    kinds = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, ImportError)
    return isinstance(error, kinds) or type(error).__name__ in NEVER
