"""Hits from Vallen transient recordings (`.tradb`), one frame each; each channel is a sensor."""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from producers.sources.reading import Reading, RecordingError
from stream.records import NS_PER_S, Flags, Frame, samples_to_ns

log = logging.getLogger(__name__)

# Hit status bits of the format (vallenae.io.HitFlags) and what they are on the wire.
STATUS_FLAGS = {
    1 << 4: Flags.SATURATED,
    1 << 6: Flags.TEST_PULSE,  # pulse received
    1 << 11: Flags.TEST_PULSE,  # pulse sent
}

HIT = """
    SELECT d.Time, d.TRAI, d.Status, d.Chan, d.Pretrigger, d.SampleRate, d.Samples, d.DataFormat, d.Data, p.TR_mV
    FROM tr_data d LEFT JOIN tr_params p ON p.ID = d.ParamID WHERE d.SetID = ?
"""


class VallenRecording:
    """All hits of a `.tradb` in order of time, opened read-only, one in memory at a time.

    A hit that cannot be decoded is left out, logged, and counted in `skipped`.

    Raises
    ------
    RecordingError
        If `vallenae` is not installed, or the file is no readable transient recording with hits in it.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        try:
            import vallenae
        except ImportError as error:
            raise RecordingError(f"{path}: reading .tradb needs vallenae; pip install 'aewatch[vallen]'") from error
        self._vallenae = vallenae
        self._path = path
        self.skipped = 0
        with self._open() as database:
            try:
                self._timebase = int(database.globalinfo()["TimeBase"])
                rows = (
                    database.connection()
                    .execute(
                        "SELECT Chan, COUNT(*), SUM(Samples), MIN(Time), MAX(Time + 1.0 * Samples / SampleRate * ?)"
                        " FROM tr_data WHERE Chan IS NOT NULL AND Time IS NOT NULL GROUP BY Chan ORDER BY Chan",
                        (self._timebase,),
                    )
                    .fetchall()
                )
            except (sqlite3.Error, KeyError, ValueError) as error:
                raise self._unreadable(error) from error
        if not rows:
            raise RecordingError(f"{path}: holds no hits; was the transient recorder switched on?")
        self._sensor_of = {row[0]: reading.sensor(path, row[0]) for row in rows}
        self.sensors = tuple(self._sensor_of.values())
        self.total_frames = sum(row[1] for row in rows) + len(rows)
        self.total_samples = sum(row[2] for row in rows)
        self.duration_s = float(max(row[4] for row in rows) - min(row[3] for row in rows)) / self._timebase

    def __iter__(self) -> Iterator[Frame]:
        """Hit by hit, then one END frame a sensor."""
        self.skipped = 0
        sequences = dict.fromkeys(self.sensors, 0)
        last: dict[str, Frame] = {}
        with self._open() as database:
            connection = database.connection()
            try:
                # Row ids first: sorting whole rows would carry every waveform through memory.
                rows = connection.execute("SELECT SetID FROM tr_data ORDER BY Time, TRAI, SetID")
                order = array("q", (row[0] for row in rows))
                for set_id in order:
                    frame = self._hit(connection.execute(HIT, (set_id,)).fetchone(), sequences)
                    if frame is not None:
                        last[frame.sensor] = frame
                        sequences[frame.sensor] += 1
                        yield frame
            except sqlite3.Error as error:
                raise self._unreadable(error) from error
        for frame in last.values():
            yield Frame(
                sensor=frame.sensor,
                epoch_ns=0,
                sequence=sequences[frame.sensor],
                first_sample=frame.end_sample,
                time_ns=frame.time_ns + samples_to_ns(len(frame.samples), frame.rate_hz),
                rate_hz=frame.rate_hz,
                samples=np.empty(0, dtype=np.int16),
                volts_per_count=frame.volts_per_count,
                flags=Flags.END,
            )

    def _hit(self, row: tuple[Any, ...], sequences: dict[str, int]) -> Frame | None:
        time, trai, status, channel, pretrigger, rate_hz, announced, data_format, data, millivolts = row
        try:
            sensor = self._sensor_of[channel]
            samples = self._vallenae.io.decode_data_blob(data, data_format, 1.0, raw=True)
            if len(samples) != announced:
                raise ValueError(f"{len(samples)} samples, {announced} announced")
            if samples.ndim != 1 or len(samples) == 0:
                raise ValueError("no samples of one channel")
            if not millivolts or millivolts <= 0:
                raise ValueError(f"{millivolts} mV per count")
            rate = Fraction(rate_hz)
            # The stored time is the trigger's; the samples begin `Pretrigger` before it.
            first_sample = max(0, round(time * rate / self._timebase) - (pretrigger or 0))
            time_ns = max(0, time * NS_PER_S // self._timebase - samples_to_ns(pretrigger or 0, rate))
            flags = Flags.HIT
            for bit, flag in STATUS_FLAGS.items():
                if (status or 0) & bit:
                    flags |= flag
        except Exception as error:
            # One damaged row must not take the others with it, and the decoders raise many kinds.
            self.skipped += 1
            log.warning("%s: hit TRAI %s of channel %s left out: %s", self._path, trai, channel, error)
            return None
        return Frame(
            sensor=sensor,
            epoch_ns=0,
            sequence=sequences[sensor],
            first_sample=first_sample,
            time_ns=time_ns,
            rate_hz=rate,
            samples=np.ascontiguousarray(samples, dtype=np.int16),
            volts_per_count=millivolts * 1e-3,
            flags=flags,
        )

    def _open(self) -> Any:
        try:
            return self._vallenae.io.TraDatabase(str(self._path), mode="ro")
        except (sqlite3.Error, ValueError, KeyError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> RecordingError:
        return RecordingError(
            f"{self._path}: cannot be read as a Vallen recording: {error}; "
            "is the file complete, and not open in the acquisition software?"
        )


def open_source(path: Path, reading: Reading) -> VallenRecording:
    """See `producers.sources.formats`."""
    return VallenRecording(path, reading)
