"""Stage 1 of comet: build, open and inspect caches of a teacher's outputs on a text."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_tools.build.build import build_cache
    from cache_tools.store.reader import Cache, open_cache

__all__ = ["Cache", "build_cache", "open_cache"]


def __getattr__(name: str) -> Any:
    """On demand: reading a cache must not need torch or transformers, and `comet-cache --help` not even zarr."""
    if name == "__version__":
        from importlib.metadata import version

        return version("comet-distill")
    if name == "build_cache":
        from cache_tools.build.build import build_cache

        return build_cache
    if name in ("Cache", "open_cache"):
        from cache_tools.store import reader

        return getattr(reader, name)
    raise AttributeError(f"module 'cache_tools' has no attribute {name!r}")
