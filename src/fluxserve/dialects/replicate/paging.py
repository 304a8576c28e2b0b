"""Cursors of lists: the place in the list, and the places of the pages before it.

A cursor names the last row that was seen (a keyset), so new rows do not disturb a walk.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.ids import parse_id
from fluxserve.dialects.links import Links

BACK_MAX = 20  # pages that a walk can go back
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAR = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Place:
    """After which row a page begins; `back` are the places before, nearest last, "" the start."""

    created_at: datetime
    id: str
    back: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[datetime, str]:
        return self.created_at, self.id

    def encode(self) -> str:
        micros = (self.created_at - EPOCH) // (FAR.resolution)
        text = json.dumps([micros, self.id, *self.back], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def read_cursor(text: str | None) -> Place | None:
    """InvalidRequest when it is none of ours."""
    if not text:
        return None
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        micros, id_, *back = json.loads(raw)
        place = EPOCH + FAR.resolution * micros
        if parse_id(id_) != id_ or not all(isinstance(item, str) for item in back):
            raise ValueError(text)
        if not EPOCH <= place <= FAR:
            raise ValueError(text)
        return Place(place, id_, tuple(back))
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error, RecursionError):
        message = "cursor is not one that this server gave out"
        raise InvalidRequest.of(
            [Problem(field="cursor", rule=Rule.FORMAT, message=message, expected="cursor")]
        ) from None


def neighbours(
    links: Links,
    path: str,
    filters: Sequence[tuple[str, str]],
    here: Place | None,
    last: tuple[datetime, str] | None,
) -> tuple[str | None, str | None]:
    """Absolute links to the next and the previous page. `last`: the last row, if more follow."""

    def link(cursor: str) -> str:
        query = [*filters, ("cursor", cursor)] if cursor else list(filters)
        return links.to(path) + (f"?{urlencode(query)}" if query else "")

    back = here.back if here else ()
    following = None
    if last is not None:
        # A place keeps only bare cursors of earlier pages, so it grows by one entry a page.
        seen = (*back, Place(*here.key).encode() if here else "")[-BACK_MAX:]
        following = link(Place(*last, seen).encode())
    if here is None:
        return following, None
    before = back[-1] if back else None
    if before is None:
        return following, None
    if not before:
        return following, link("")
    place = read_cursor(before)
    assert place is not None
    return following, link(Place(*place.key, back[:-1]).encode())
