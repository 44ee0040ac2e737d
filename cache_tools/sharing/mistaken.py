"""Recognise answers that are not the requested file: login and error pages, text, pointers of Git LFS."""

import codecs
import re

from cache_tools.errors import CometError

HEAD = 512  # bytes to inspect
PAGE = re.compile(rb"<(!doctype|!--|\?xml|[a-z][a-z0-9]*[\s>])", re.IGNORECASE)
SIGNS = {
    b"version https://git-lfs": "a pointer of Git LFS came instead of the file; run `git lfs pull` where it is served",
    b"\x1f\x8b": "gzip data came instead of the file; switch off compression that the server does not declare",
    b"\x28\xb5\x2f\xfd": "zstd data came instead of the file; switch off compression that the server does not declare",
}
NOT_THERE = "instead of the file, as servers send for what is not there, and networks before a login"


class PerhapsAbsent(CometError):
    """An answer that some servers give for a file that is not there: 403, or a page with status 200."""


def mistaken(head: bytes, is_json: bool) -> str | None:
    """Say what came instead of a file, by the first bytes of the answer; None if they do not show it.

    For answers that are known to be wrong, or are expected to be JSON, as `is_json` says.
    """
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for sign, said in SIGNS.items():
        if text.startswith(sign):
            return said
    if PAGE.match(text):
        return f"a page came {NOT_THERE}"
    try:
        shown = codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return None
    if not shown or is_json or not all(c.isprintable() or c.isspace() for c in shown):
        return None
    return f"{'an answer in JSON' if shown[0] in '{[' else 'a text'} came {NOT_THERE}"
