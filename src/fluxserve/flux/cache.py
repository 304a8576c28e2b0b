"""A bounded memory of results that are likely to be asked for again, with counters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache did since it was made."""

    hits: int
    misses: int
    size_bytes: int


class Cache(Generic[V]):
    """Keeps the most recently used values while they fit into `bytes_max`. Safe between threads."""

    def __init__(self, bytes_max: int, size_of: Callable[[V], int]) -> None:
        self._bytes_max = bytes_max
        self._size_of = size_of
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value under `key`, made now if it is not there. Two threads may make it twice."""
        with self._lock:
            if key in self._values:
                self._hits += 1
                self._values.move_to_end(key)
                return self._values[key]
            self._misses += 1
        value = make()
        self._put(key, value)
        return value

    def clear(self) -> None:
        """Let go of all values; the counters go on."""
        with self._lock:
            self._values.clear()
            self._bytes = 0

    def _put(self, key: Hashable, value: V) -> None:
        """A value that is too large for the whole cache makes no other one go."""
        size = self._size_of(value)
        if size > self._bytes_max:
            return
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += size
            while self._bytes > self._bytes_max and self._values:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._size_of(oldest)

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(hits=self._hits, misses=self._misses, size_bytes=self._bytes)
