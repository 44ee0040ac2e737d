"""A folder of this machine as a location: a file gets its name only once it is on the disk."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from os.path import isfile, lexists  # unlike those of Path they take names that no disk has
from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.places.foreign import is_left_by_system
from cache_tools.sharing.locations import Blocks
from cache_tools.store.copy import writing_in
from cache_tools.store.records import inside, open_file, read_bounded, rename_durably
from cache_tools.store.staging import STAGING, claimed_folder, exclusive

BLOCK = 2**20


class Folder:
    """A location on this machine. Paths are relative to `root`; `name` is for messages. Write only inside `staging`."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)
        self._staging: Path | None = None

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Create the folder, and one in it for unfinished files. Raises CometError if the disk refuses."""
        with ExitStack() as stack:
            with writing_in(self.root):
                self._staging = stack.enter_context(claimed_folder(self.root, STAGING))
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other transfers and builds from committing here while the block runs.

        Raises CometError if the disk refuses.
        """
        with ExitStack() as stack:
            with writing_in(self.root):
                stack.enter_context(exclusive(self.root))
            yield

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a small file, None if there is none. Raises CometError if it has more than `limit` bytes, or is or
        lies behind a link."""
        return read_bounded(inside(self.root, path), limit) if lexists(self.root / path) else None

    def blocks(self, path: str, size: int) -> Blocks:
        """Yield the content of a file, whatever its size. Raises CometError if it cannot be read, or is no file, or
        lies behind a link."""
        try:
            with open_file(inside(self.root, path)) as file:
                while block := file.read(BLOCK):
                    yield block
        except OSError as error:
            raise CometError(
                f"{self.root / path}: cannot be read ({error.strerror or error}), though the ledger lists it; run "
                "`comet-cache verify` on this cache"
            ) from None

    def size_of(self, path: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        return (self.root / path).stat().st_size if isfile(self.root / path) else None

    def has_exactly(self, path: str, size: int, sha256: str) -> bool:
        """Return whether there is a file of this size and hash."""
        if self.size_of(path) != size:
            return False
        digest = hashlib.sha256()
        for block in self.blocks(path, size):
            digest.update(block)
        return digest.hexdigest() == sha256

    def require_writable(self) -> None:
        """Do nothing: writing to a disk raises its own errors."""

    def close(self) -> None:
        """Do nothing: no read waits for a disk."""

    def is_empty(self) -> bool:
        """Return whether the folder holds nothing, or only what systems and stopped transfers leave."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        return all(name.startswith(STAGING) or is_left_by_system(name) for name in names)

    def write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Write a file, which gets its name only once all blocks are on the disk.

        Raises CometError if the disk refuses, and the errors of `blocks`.
        """
        assert self._staging is not None
        staged = self._staging / uuid.uuid4().hex
        with writing_in(self.root):
            try:
                with staged.open("xb") as file:
                    for block in blocks:
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                rename_durably(staged, inside(self.root, path))
            finally:
                staged.unlink(missing_ok=True)
