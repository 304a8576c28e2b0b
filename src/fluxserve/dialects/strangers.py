"""Keeps web pages of other origins from using a server that asks for no key.

A browser sends a page's POST to any address, loopback too, and a name that its owner points at
127.0.0.1 makes that page one of "our" origin. Where a key is needed neither helps the page.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

SAFE = ("GET", "HEAD", "OPTIONS")
# Names that nobody can register, so no stranger can point them at us (RFC 2606, 6761, 6762, 8375).
PRIVATE_ENDS = (".localhost", ".local", ".test", ".example", ".invalid", ".internal", ".home.arpa")
RESERVED = ("example.com", "example.net", "example.org")


@lru_cache(maxsize=256)  # asked on every request, of few names
def strange_host(host: str, public_url: str) -> bool:
    """Whether `host` (a Host header) is a name by which a stranger could have led a browser here.

    Addresses, names without a dot, reserved names and the one of `public_url` are none.
    """
    name = (urlsplit(f"//{host}").hostname or "") if _is_plain(host) else "?."
    if not name or "." not in name or name.endswith(PRIVATE_ENDS):
        return False
    if name.endswith(tuple(f".{known}" for known in RESERVED)) or name in RESERVED:
        return False
    if name == (urlsplit(public_url).hostname or ""):
        return False
    try:
        ip_address(name)
    except ValueError:
        return True
    return False


def strange_page(method: str, headers: Headers, hosts: Sequence[str], cors: Sequence[str]) -> bool:
    """Whether a page of another origin than `hosts` or `cors` sent a request that acts.

    Only browsers send Origin and Sec-Fetch-Site; a request with neither is no page's.
    """
    if method in SAFE or "*" in cors:
        return False
    origin = headers.get("origin")
    if origin is not None:
        return origin not in cors and urlsplit(origin).netloc.lower() not in hosts
    return headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")


def _is_plain(host: str) -> bool:
    try:
        urlsplit(f"//{host}")
    except ValueError:
        return False
    return True
