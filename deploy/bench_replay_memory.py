"""Whether the memory of a replay grows with the recording: files of growing length at full speed into a null sink.

Each length is replayed by a process of its own, whose largest resident set is told. The files are sparse WAVs (RF64
beyond 4 GB): their samples are zeros, which are read, cut into frames and encoded as any others are.
"""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producers.publisher import encoded
from producers.replay import replay
from producers.sources import open_recording
from stream.records import Frame

MEGABYTE = 10**6
SIZES_MB = (100, 1_000, 10_000)
CHANNELS = 4
RATE_HZ = 1_000_000
HEADER_BYTES = 80


def bench_replay_memory(sizes_mb: Sequence[int] = SIZES_MB) -> dict[str, Any]:
    """Replay a file of each size; one JSON-ready object.

    Raises
    ------
    subprocess.CalledProcessError
        If a replay fails.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="aewatch-bench-") as folder:
        for size_mb in sizes_mb:
            path = Path(folder, f"{size_mb}.rf64")
            write_sparse(path, size_mb * MEGABYTE)
            child = subprocess.run(
                [sys.executable, "-m", "deploy.bench_replay_memory", str(path)], stdout=subprocess.PIPE, check=True
            )
            results.append({"file_mb": size_mb, **json.loads(child.stdout)})
            path.unlink()
    return {"bench": "replay-memory", "channels": CHANNELS, "rate_hz": RATE_HZ, "results": results}


def write_sparse(path: Path, size_bytes: int) -> None:
    """An RF64 file of int16 zeros that takes almost no room on the disk."""
    row_bytes = 2 * CHANNELS
    rows = (size_bytes - HEADER_BYTES) // row_bytes
    data_bytes = rows * row_bytes
    header = (
        struct.pack("<4sI4s", b"RF64", 2**32 - 1, b"WAVE")
        + struct.pack("<4sIQQQI", b"ds64", 28, HEADER_BYTES - 8 + data_bytes, data_bytes, rows, 0)
        + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, CHANNELS, RATE_HZ, RATE_HZ * row_bytes, row_bytes, 16)
        + struct.pack("<4sI", b"data", 2**32 - 1)
    )
    assert len(header) == HEADER_BYTES
    with path.open("wb") as file:
        file.write(header)
        file.truncate(HEADER_BYTES + data_bytes)


class _Nowhere:
    """Encodes what it gets, and forgets it."""

    async def publish(self, frame: Frame) -> None:
        encoded(frame)

    async def flush(self) -> None:
        pass


def _replay(path: Path) -> dict[str, Any]:
    begun_s = time.monotonic()
    done = asyncio.run(replay([open_recording(path, "bench")], _Nowhere(), None))
    return {
        "samples": done.samples,
        "seconds": round(time.monotonic() - begun_s, 2),
        "largest_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE, 1),
    }


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(_replay(Path(sys.argv[1]))))
    else:
        print(json.dumps(bench_replay_memory(), indent=2))
