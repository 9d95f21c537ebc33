"""The hot tier: decoded values in memory, bounded by their bytes.

A value is found by the blob that it was decoded from, never by its address: whatever another thread or process does to
a record, what is found here for its present blob is right. The tenant is part of the key, so tenants share nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

ENTRY: Final = 200  # bytes that an entry takes besides blob and raw bytes

Key = tuple[str, str, bytes]  # tenant, codec id, blob
Pair = tuple[int, bytes]  # type number and raw bytes of a value


class HotCache:
    """At most `most` bytes of values, those used last. Thread-safe. 0 keeps nothing."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.hits = self.misses = 0
        self.bytes = 0
        self._held: OrderedDict[Key, Pair] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> Pair | None:
        with self._lock:
            found = self._held.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._held.move_to_end(key)
            return found

    def put(self, key: Key, pair: Pair) -> None:
        """Keeps a value, unless it alone is over an eighth of the cache."""
        size = _size(key, pair)
        if size > self.most // 8:
            return
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return
            self._held[key] = pair
            self.bytes += size
            while self.bytes > self.most:
                self.bytes -= _size(*self._held.popitem(last=False))

    def forget(self, tenant: str) -> None:
        """Drops all that a tenant has here."""
        with self._lock:
            for key in [key for key in self._held if key[0] == tenant]:
                self.bytes -= _size(key, self._held.pop(key))

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.bytes = 0


def _size(key: Key, pair: Pair) -> int:
    return len(key[2]) + len(pair[1]) + ENTRY
