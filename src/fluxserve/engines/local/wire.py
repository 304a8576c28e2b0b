"""What the server and its engine process say to each other, and how it looks on the socket.

A frame is a line of JSON (the message and the lengths of what follows) and then those bytes:

    4 bytes  length of the JSON, big endian
    JSON     {"kind": "order", ..., "blobs": [n, m]}
    n bytes, m bytes: pictures as files
"""

from __future__ import annotations

import json
import struct
from asyncio import StreamReader
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
HEADER_MAX = 8 * 2**20  # no message is near that


class Broken(Exception):
    """The other side closed the socket or spoke nonsense."""


# --- server to engine -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One job. Its blobs are the input pictures, then the mask if there is one."""

    id: str
    model: str  # as the caller asked for it
    task: str
    prompt: str
    negative_prompt: str
    width: int  # px
    height: int  # px
    num_steps: int
    guidance: float
    strength: float
    seed: int
    indexes: tuple[int, ...]  # which outputs are still to be made
    output_format: str
    output_quality: int
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of the input pictures
    has_mask: bool = False
    margins: tuple[int, int, int, int] | None = None  # top, bottom, left, right in px
    loras: tuple[tuple[str, float], ...] = ()
    approximations: tuple[str, ...] = ()  # that are allowed, by their names in flux/skips.py
    preview_steps: int = 0
    key: str = ""
    priority: int = 0
    deadline_s: float | None = None  # from now
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Drop the job; answered by `Ended`."""

    id: str


# --- engine to server -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The model is loaded."""

    name: str
    device: str
    dtype: str
    load_s: float
    device_name: str = ""  # as its maker calls it
    approximations: tuple[str, ...] = ()  # that a request may name, by their names in flux/skips.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The model cannot be loaded; the message is for the operator. The process ends."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life. `busy_s`: for how long the device has been at one piece of work."""

    busy_s: float
    cost: tuple[float, float, float, float]  # coefficients of the step-cost model
    expected_s: float = 0.0  # the longest piece of work for any job that is there, as foreseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A job has come to `step`, or to another place in the queue."""

    id: str
    step: int
    total: int
    eta_s: float | None
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """A preview; its blob is the picture."""

    id: str
    index: int
    step: int
    mime: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An output lies complete under `key` in the spool."""

    id: str
    index: int
    key: str
    mime: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line for the caller's log."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing of the job runs any more. `code` is an ErrorCode, or empty when all went well."""

    id: str
    code: str = ""
    message: str = ""
    field_name: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


Down = Order | Cancel
Up = Ready | Refused | Beat | Moved | Glimpse | Made | Note | Ended
KINDS: Mapping[str, type[Down | Up]] = {
    kind.__name__.lower(): kind
    for kind in (Order, Cancel, Ready, Refused, Beat, Moved, Glimpse, Made, Note, Ended)
}


# --- frames ---------------------------------------------------------------------------------------


def pack(message: Down | Up, blobs: Sequence[bytes] = ()) -> bytes:
    """The bytes of a frame."""
    body = {"kind": type(message).__name__.lower(), "blobs": [len(blob) for blob in blobs]}
    head = json.dumps(body | asdict(message), separators=(",", ":")).encode()
    return b"".join((HEADER.pack(len(head)), head, *blobs))


def _parse(head: bytes) -> tuple[Down | Up, list[int]]:
    try:
        said = json.loads(head)
        kind, lengths = KINDS[said.pop("kind")], said.pop("blobs")
        return kind(**{name: _frozen(value) for name, value in said.items()}), lengths
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(f"a frame that makes no sense: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _length(raw: bytes) -> int:
    (length,) = HEADER.unpack(raw)
    if length > HEADER_MAX:
        raise Broken(f"a frame of {length} bytes")
    return int(length)


async def receive(reader: StreamReader) -> tuple[Down | Up, list[bytes]]:
    """The next frame; Broken at the end of the stream."""
    try:
        head = await reader.readexactly(_length(await reader.readexactly(HEADER.size)))
        message, lengths = _parse(head)
        return message, [await reader.readexactly(length) for length in lengths]
    except (EOFError, OSError) as error:
        raise Broken("the other side closed the socket") from error


def receive_blocking(file: BinaryIO) -> tuple[Down | Up, list[bytes]]:
    """The next frame from a buffered file; Broken at the end of the stream."""
    message, lengths = _parse(_exactly(file, _length(_exactly(file, HEADER.size))))
    return message, [_exactly(file, length) for length in lengths]


def _exactly(file: BinaryIO, length: int) -> bytes:
    try:
        data = file.read(length)
    except OSError as error:
        raise Broken("the other side closed the socket") from error
    if len(data) != length:
        raise Broken("the other side closed the socket")
    return data
