"""Locations of caches: a folder on this machine, or a URL."""

from collections.abc import Generator

Blocks = Generator[bytes, None, None]
"""The content of a file; closed by a caller that does not read it to the end."""
