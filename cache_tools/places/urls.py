"""Tell paths of folders from URLs, check URLs, and print them without their secrets.

The parts of a URL before @ and after ? may hold a password or a signature. Only calls to a server use them; messages
and files hold the printable form, without credentials.
"""

import re
from os.path import lexists
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from cache_tools.errors import CometError, visible

HTTP = ("http", "https")
SSH = ("ssh", "sftp")
STORES = ("s3", "s3a", "gs", "gcs", "hf")  # they take credentials from their own files and variables
URL = re.compile(r"[A-Za-z][\w+.:-]*?://")
MISTYPED = re.compile(
    r"[A-Za-z][\w+.-]+:[/\\]|(?i:https?|ssh|sftp|s3a?|hf|file)(?::|//)"  # https:/host, https//host, https:host
    r"|/*[^/@:]+:[^@]*@[\w\[]|[^/.~].*\?[\w.~-]+="  # me:password@host/kin, host/kin?signature=…
    r"|.*://"
)
SCP = re.compile(r"(?!(?i:https?|ssh|sftp|s3a?|gs|gcs|hf|file):)(?:[^\s/@:\\]+@)?[\w.-]{2,}:(?!/[/\\])[^@?]*")
"""[USER@]HOST:PATH, as scp and rsync take it."""
SCHEME = re.compile(r"[A-Za-z][\w+-]*(?=:[/\\])|(?i:https?|ssh|sftp|s3a?|hf|file)(?=:|//)")
CHAINED = re.compile(r"[^/\[]*::|.*::\w+://")
NOT_A_PORT = re.compile(r":(?!\d*$)")
IN_TEXT = re.compile(r"[A-Za-z][\w+.-]+:[/\\]+[^\s'\"<>`]+")


def is_url(location: str) -> bool:
    """Return whether a location is a URL, and not the path of a folder. Raises CometError if it is neither, or could
    be a folder and an address of scp, unless there is such a folder."""
    if not location.strip() or "\0" in location:
        raise CometError(f"{location!r}: expected the path of a folder, or a URL", exit_code=2)
    if URL.match(location):
        return True
    if SCP.fullmatch(location):
        if lexists(location):
            return False
        raise CometError(
            f"{location}: looks like an address of scp; write ssh:// before it, and / instead of the colon, with the "
            f"path from the root of the server; or ./{location} for a folder of this name",
            exit_code=2,
        )
    if MISTYPED.match(location):
        scheme = SCHEME.match(location)
        meant = scheme[0].lower() if scheme else "https"
        shown = f"{scheme[0] if scheme else ''}…" if re.search("[@?#]", location) else location
        raise CometError(f"{shown}: neither a folder nor a URL; did you mean {meant}://…?", exit_code=2)
    return False


def parse_url(url: str) -> SplitResult:
    """Return the parts of a URL, with its scheme in lower case.

    Raises CometError, at once, for one that can lead nowhere: no host, a wrong port, characters that no URL has.
    """

    def refused(why: str) -> CometError:
        return CometError(f"{visible(printable_url(url))}: {why}", exit_code=2)

    form = "expected SCHEME://HOST:PORT/PATH, the port from 1 to 65535, an IPv6 address in brackets"
    if CHAINED.match(url):
        raise refused("chained URLs are not supported; give that of the cache itself")
    if not url.isprintable() or url != url.strip():
        raise refused("holds characters that no URL has; write them as %20")
    try:
        parts = urlsplit(url)
        if parts.scheme in (*HTTP, *SSH) and parts.port == 0:
            raise refused(form)
    except ValueError:  # its message holds a part of the password
        raise refused(form) from None
    if re.search(r"[\s\\]", parts.netloc):
        raise refused(form)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path or parts.query:
            raise refused("expected file:///PATH, of this machine, ? written as %3F")
        if "%00" in parts.path:
            raise refused("holds a NUL, which no path has")
        return parts
    if not (parts.hostname if parts.scheme in (*HTTP, *SSH) else parts.netloc):
        raise refused(f"has no host; {form}")
    if parts.scheme in (*STORES, *SSH) and parts.query:
        raise refused(f"has a query, which means nothing at {parts.scheme}://; omit what follows the ?")
    if parts.scheme not in HTTP and "::" in url:
        raise refused("IPv6 addresses and :: are not supported here; give the host a name")
    if parts.scheme in STORES and "@" in parts.netloc:
        raise refused(
            "holds credentials; give them by the variables or files that its tools have, as AWS_… or HF_TOKEN"
        )
    return parts


def local_path(parts: SplitResult) -> Path:
    """Return the path of a file:// URL."""
    from urllib.request import url2pathname  # a third of what `--help` would wait for

    return Path(url2pathname(parts.path))


def printable_url(url: str) -> str:
    """Return a URL without user, password, query and fragment; other text as it is."""
    start = URL.match(url) or re.match(r"[A-Za-z][\w+.-]+:[/\\]+", url)
    if start is None:
        return url
    rest = url[start.end() :]
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    whole, host = rest[len(host) :], host.rpartition("@")[2]
    if "@" in whole and NOT_A_PORT.search(re.sub(r"\[.*?\]", "", host)):
        return f"{start[0]}…"  # a password with / ? or # in it
    return start[0] + (host + slash + path).rstrip("/")


def without_secrets(text: str) -> str:
    """Return a message with every URL in its printable form."""

    def shown(found: re.Match[str]) -> str:
        url = found[0].rstrip(".,;:!?)…")
        return printable_url(url) + found[0][len(url) :]

    return IN_TEXT.sub(shown, text)


def name_of(location: str) -> str:
    """Return the last name of a path or URL, to name other files after it. Raises CometError as `parse_url` does."""
    if not is_url(location):
        return Path(location).name
    parts = parse_url(location)
    return re.sub(r"[^\w.-]+", "-", Path(unquote(parts.path)).name or parts.hostname or "").strip("-")
