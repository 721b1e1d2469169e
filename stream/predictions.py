"""What is on the wire in `ae.predictions`: one JSON object a window."""

from __future__ import annotations

import msgspec

from stream.json_decoding import decode_json


class HitFeatures(msgspec.Struct, frozen=True):
    """Acoustic-emission features of one window, in the units of EN 1330-9."""

    peak_db_ae: float  #: peak amplitude, dB above 1 µV at the sensor
    rms_db_ae: float  #: root mean square, dB above 1 µV
    rise_time_us: float  #: first threshold crossing to peak
    duration_us: float  #: first to last threshold crossing
    counts: int  #: positive threshold crossings
    energy_eu: float  #: 1 eu = 1e-14 V²s
    signal_strength_nvs: float  #: integral of |V|, nVs
    clipped_fraction: float  #: share of samples at either end of the converter's range
    flat: bool  #: every sample is the same


class Prediction(msgspec.Struct, frozen=True):
    """What the network says of one window, whose identity is (sensor, epoch_ns, start_sample)."""

    sensor: str
    epoch_ns: int
    start_sample: int
    source_count: int  #: samples of the sensor that the window covers
    time_ns: int  #: first sample, ns UTC
    end_time_ns: int  #: first sample after the window, ns UTC
    source_rate_hz: float
    flags: int  #: `stream.records.Flags`
    probabilities: dict[str, float]  #: calibrated, in the order of the bundle's labels
    unknown_score: float  #: larger is stranger; compared with the bundle's threshold
    unknown: bool  #: the score is over the bundle's threshold
    model_version: str
    features: HitFeatures

    @property
    def position(self) -> tuple[int, int]:
        """Where the window stands in its sensor's life; grows from window to window."""
        return (self.epoch_ns, self.start_sample)

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Prediction)


def encode_prediction(prediction: Prediction) -> bytes:
    """JSON, UTF-8."""
    return _encoder.encode(prediction)


def decode_prediction(message: bytes) -> Prediction:
    """The prediction in `message`.

    Raises
    ------
    msgspec.DecodeError
        If it is not JSON or a field is missing or of another type.
    """
    return decode_json(_decoder, message)
