"""What a person calls a place: a folder, or a URL."""

from pathlib import Path

from cache_tools.sharing.folder import Folder
from cache_tools.sharing.plan import Place
from cache_tools.sharing.remote import Patience, Remote


def place_at(url: str, patience: Patience) -> Place:
    """A folder, or what fsspec makes of a URL. Raises CometError for a URL that cannot be one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Folder(Path(url))
    return Folder(Path(rest)) if scheme == "file" else Remote(url, patience)
