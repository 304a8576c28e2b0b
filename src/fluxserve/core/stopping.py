"""Stopping the parts of a house, of which one in trouble must not hold up the others."""

import logging
from collections.abc import Iterable
from typing import Protocol

log = logging.getLogger(__name__)


class Stoppable(Protocol):
    async def stop(self) -> None: ...


async def stop_each(parts: Iterable[Stoppable]) -> None:
    """One after the other; what fails is logged."""
    for part in parts:
        try:
            await part.stop()
        except Exception:
            log.exception("%s did not stop cleanly", type(part).__name__)
