"""Publish a folder under its name only once it is complete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_tools.errors import CometError


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder hidden beside `path`; rename it to `path` at the end, or remove it if the block raises.

    Its files become as readable as the umask allows: temporary folders and safetensors are private.
    Raises CometError if `path` was created meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as staging:
        folder = Path(staging) / path.name
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            file.chmod(folder.stat().st_mode & 0o666)
        try:
            folder.rename(path)
        except OSError as error:
            way_out = "remove it, or give another --output, and run again"
            raise CometError(f"--output {path}: was created meanwhile; {way_out}") from error
