"""Decisions read from the fuzzer's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Takes numbers and choices off the front of `data`; behind its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is anything left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def choice(self, options: Sequence[T]) -> T:
        return options[self.number(1) % len(options)]

    def chunk(self) -> bytes:
        """Some bytes, with their length before them."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data))


def chunked(*parts: bytes) -> bytes:
    """What `Reader.chunk` reads these from."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)
