"""What a fuzzer is given."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Takes any bytes, and raises only where a promise is broken."""

    name: str
    promise: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    max_bytes: int = 4096
    share: float = 1.0  #: of the executions that are asked for; what is slow gets fewer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the log, which would say of each input what is wrong with it."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
