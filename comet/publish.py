"""Give a folder its name only when all of it is written."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_tools.errors import CometError


@contextmanager
def published_folder(path: Path, keep: bool = False) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; rename it to `path` at the end, or remove it if the block raises.

    Its files become as readable as the umask allows: temporary folders and safetensors are private.
    Raises CometError if `path` has come to exist meanwhile. The folder is removed then, unless `keep` is set; the
    message says where it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    folder = staging / path.name
    kept = False
    try:
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            file.chmod(folder.stat().st_mode & 0o666)
        try:
            folder.rename(path)
        except OSError as error:
            kept = keep
            way_out = f"the result is in {folder}" if keep else "remove it, or give another --output, and run again"
            raise CometError(f"--output {path}: came to exist meanwhile; {way_out}") from error
    finally:
        if not kept:
            shutil.rmtree(staging, ignore_errors=True)
