"""Proxies from the environment, as curl reads them: http_proxy, https_proxy, all_proxy and no_proxy, in lower or upper
case."""

import base64
import os
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from cache_tools.errors import CometError

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """Where to connect instead of the server, and what to send there. `variable` named it."""

    variable: str
    host: str
    port: int
    headers: dict[str, str]


def basic(user: str, password: str) -> str:
    """Return the value of a header for HTTP's Basic authentication."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def proxy_for(parts: SplitResult) -> Proxy | None:
    """Return the proxy for a URL, None for none. Raises CometError, naming the variable, if it cannot be used."""
    found = urllib.request.getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if kind in found), None)
    if kind is None or _is_exempt(parts, found.get("no", "")):
        return None
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), f"{kind} proxy of the system")
    given = found[kind] if "://" in found[kind] else f"http://{found[kind].lstrip('/')}"
    try:
        via = urlsplit(given)
        host, port = via.hostname, via.port or PORTS["http"]
    except ValueError:  # its message holds a part of the password
        host, port = None, 0
    if not host or via.scheme != "http":
        form = "expected http://HOST:PORT, with USER:PASSWORD@ before the host if it asks for them"
        raise CometError(f"{variable}: {form}; or exempt {parts.hostname} by no_proxy", exit_code=2)
    user, password = unquote(via.username or ""), unquote(via.password or "")
    return Proxy(variable, host, port, {"Proxy-Authorization": basic(user, password)} if user else {})


def _is_exempt(parts: SplitResult, no_proxy: str) -> bool:
    """Return whether no_proxy names the server: a host, a domain, a network, each perhaps with a port, or *."""
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    forms = (host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}")
    if any(urllib.request.proxy_bypass(form) for form in forms):
        return True
    for network in no_proxy.split(","):
        with suppress(ValueError):  # the name of a host
            if ip_address(host) in ip_network(network.strip(), strict=False):
                return True
    return False
