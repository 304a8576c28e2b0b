"""One log line per fact, on standard error; colour only on a terminal, the date only elsewhere."""

import logging
import sys

_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}


class _Formatter(logging.Formatter):
    def __init__(self, when: str, *, colour: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", when)
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        start = _COLOURS.get(record.levelname) if self._colour else None
        return f"{start}{text}\x1b[0m" if start else text


def set_up(level: str, *, colour: bool = True) -> None:
    """Log from `level` on; `colour`: a terminal may be coloured."""
    handler = logging.StreamHandler(sys.stderr)
    is_watched = sys.stderr.isatty()
    when = "%H:%M:%S" if is_watched else "%Y-%m-%d %H:%M:%S%z"  # a file is read on another day
    handler.setFormatter(_Formatter(when, colour=is_watched and colour))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
