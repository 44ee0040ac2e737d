"""A folder as a location that caches are moved from and to: a file has its name only when it is on the disk."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.sharing.locations.http import Blocks
from cache_tools.store.copy import writing_in
from cache_tools.store.records import read_bounded, sync_folder
from cache_tools.store.staging import STAGING, claimed_folder

BLOCK = 2**20


class Folder:
    """A cache's location on this machine. Paths are relative to it; `name` is how it is shown. It is written to inside
    `staging`."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)
        self._staging: Path | None = None

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Makes the folder, and one in it for files on their way. Raises CometError when the disk refuses that."""
        with ExitStack() as stack:
            with writing_in(self.root):
                self._staging = stack.enter_context(claimed_folder(self.root, STAGING))
            yield

    def read(self, path: str, limit: int) -> bytes | None:
        """A small file; None if it is not there. Raises CometError when it has more than `limit` bytes."""
        return read_bounded(self.root / path, limit) if (self.root / path).exists() else None

    def blocks(self, path: str, size: int) -> Blocks:
        """The content of a file in blocks, however long it is. Raises CometError when it cannot be read."""
        try:
            with (self.root / path).open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
        except OSError as error:
            raise CometError(
                f"{self.root / path}: cannot be read ({error.strerror or error}), though the ledger names it; "
                "`comet-cache verify` looks at all of the cache"
            ) from None

    def size_of(self, path: str) -> int | None:
        """The size of a file, None if it is not there."""
        return (self.root / path).stat().st_size if (self.root / path).is_file() else None

    def has_exactly(self, path: str, size: int, sha256: str) -> bool:
        """Whether the file is there already."""
        if self.size_of(path) != size:
            return False
        digest = hashlib.sha256()
        for block in self.blocks(path, size):
            digest.update(block)
        return digest.hexdigest() == sha256

    def require_writable(self) -> None:
        """The disk itself says so, when it is written to."""

    def is_empty(self) -> bool:
        """Whether nothing lies there but what a stopped transfer may have left."""
        return not self.root.exists() or all(path.name.startswith(STAGING) for path in self.root.iterdir())

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """A file that has its name only when all blocks are on the disk.

        Raises what `blocks` raises, and CometError for what the disk refuses.
        """
        assert self._staging is not None
        aside, final = self._staging / uuid.uuid4().hex, self.root / path
        with writing_in(self.root):
            try:
                with aside.open("xb") as file:
                    for block in blocks:
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, final)
                sync_folder(final.parent)
            finally:
                aside.unlink(missing_ok=True)
