"""What a setting may be: lists, networks, durations, devices, an origin."""

import json
import re
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def listed(value: object) -> object:
    """A list from the environment: JSON, or separated by commas."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError("a list in JSON is needed, or words with commas") from None
    return [part.strip() for part in text.split(",") if part.strip()]


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]


def _networks(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each an address or a network, as the library reads them; ValueError."""
    for name in names:
        try:
            ip_network(name, strict=False)
        except ValueError:
            wanted = "an address or a network such as 10.0.0.0/8 is needed"
            raise ValueError(f"{wanted}, not {name}") from None
    return names


Networks = Annotated[Names, AfterValidator(_networks)]

# A hundred years, the longest that dates are reckoned with; "for ever" is what a setting calls it.
LONGEST_S = 100 * 365.25 * 86400
Seconds = Annotated[float, Field(le=LONGEST_S)]

_DEVICES = re.compile(r"(auto|cpu|mps|cuda(:\d{1,3})?)?")


def _devices(text: str) -> str:
    """Devices with commas, as engines know them; ValueError."""
    for name in text.split(","):
        if not _DEVICES.fullmatch(name.strip()):
            raise ValueError(f"auto, cpu, mps, cuda or cuda:N is needed, not {name.strip()!r}")
    return text


Devices = Annotated[str, AfterValidator(_devices)]

# A prefix is for proxies that take it off again; links through two more folders are still ours.
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]{2,45}\])"
    r"(?P<port>:[0-9]{1,5})?"
    r"(?P<prefix>(?:/[A-Za-z0-9_-]{1,64}){0,2})/?",
    re.ASCII | re.IGNORECASE,
)


def _origin(text: str) -> str:
    """scheme://host[:port][/prefix] without a slash at its end; empty: not said. ValueError."""
    found = _ORIGIN.fullmatch(text)
    if not text:
        return ""
    if not found or not 0 < int((found["port"] or ":1")[1:]) < 65536:
        raise ValueError(f"scheme://host[:port] is needed, such as https://img.example, not {text}")
    return f"{found['scheme'].lower()}://{found['host']}{found['port'] or ''}{found['prefix']}"


Origin = Annotated[str, AfterValidator(_origin)]
