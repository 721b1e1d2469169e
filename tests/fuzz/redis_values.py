"""Targets: what is read from Redis, where anybody may have written it."""

from __future__ import annotations

import contextlib

import msgspec

from stream.alarm_state import BadState, SensorState, decode_state, encode_state
from stream.alarms import AlarmRules, advance
from stream.alert_filter import EVERYTHING, AlertFilter
from stream.alerts import Alert, Priority, Transition, decode_alert, encode_alert
from stream.model_board import Answer, Order, Outcome, WorkerReport, _order_fields, _orders, _read_report
from stream.model_board import _report_fields as report_fields
from stream.sensor_summary import read_summary, summary_fields
from stream.shadow_comparison import Comparison
from stream.subscribe import BadCursor, HistoryTrimmed, _check_cursor, _order, _Reading
from tests.fuzz.bytes_reader import Reader, chunked
from tests.fuzz.target import Target, quiet
from tests.fuzz.wire import a_prediction

NARROW = AlertFilter(sensors=("plant/*", "s"), conditions=("rub",), min_priority=Priority.MEDIUM)


def an_alert() -> Alert:
    return Alert(
        "0123-1", "0123", 1, Transition.RAISED, "s", "rub", Priority.HIGH, True, 5, 0, 64, 64, 64, probability=0.9
    )


def check_alert(data: bytes) -> None:
    try:
        alert = decode_alert(data)
    except msgspec.DecodeError:
        return
    assert decode_alert(encode_alert(alert)) == alert
    NARROW.matches(alert)
    EVERYTHING.matches(alert)


ENTRY_FIELDS = (b"alert", b"n", b"other", b"")


def entry(**fields: bytes) -> bytes:
    parts = [bytes([ENTRY_FIELDS.index(name.encode())]) + chunked(value) for name, value in fields.items()]
    return bytes([len(parts)]) + b"".join(parts)


def check_alert_stream(data: bytes) -> None:
    """Entries of the stream one after another: an alert, nothing, or word that some are missing."""
    reader = Reader(data)
    told: list[HistoryTrimmed] = []
    reading = _Reading(told.append)
    number = 0
    while reader and number < 20:
        number += 1
        fields = {reader.choice(ENTRY_FIELDS): reader.chunk() for _ in range(reader.number(1) % 5)}
        with quiet():
            alert = reading.take(b"%d-0" % number, fields)
        assert alert is None or isinstance(alert, Alert)
        assert reading.cursor == f"{number}-0"


def check_cursor(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(BadCursor):
        _check_cursor(text)
        assert len(_order(text)) == 2


RULES = AlarmRules.for_labels({"rub": "fault", "quiet": "background", "break": "calibration"})


def state_seeds() -> list[bytes]:
    state = SensorState()
    seeds = [encode_state(state)]
    for number in range(1, 9):
        advance(state, a_prediction(start_sample=64 * number, end_time_ns=10**9 * number), RULES)
        seeds.append(encode_state(state))
    return seeds


def check_alarm_state(data: bytes) -> None:
    try:
        state = decode_state(data, "s")
    except BadState:
        return
    assert decode_state(encode_state(state), "s") == state
    assert isinstance(state.open_conditions, list)
    assert state.position is None or len(state.position) == 2


SUMMARY_FIELDS = (
    "last_end_ns", "windows", "hits", "label", "probability", "unknown", "unknown_score", "peak_db_ae", "rms_db_ae",
    "model_version", "open", "shelved",
)  # fmt: skip


def hash_of(fields: dict[str, object], names: tuple[str, ...]) -> bytes:
    values = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}
    return b"".join(bytes([names.index(name)]) + chunked(values[name]) for name in values if name in names)


def hash_in(reader: Reader, names: tuple[str, ...]) -> dict[bytes, bytes]:
    fields = {}
    while reader:
        name = reader.choice((*names, "strange"))
        fields[name.encode() if name != "strange" else reader.chunk()] = reader.chunk()
    return fields


def summary_seeds() -> list[bytes]:
    state = SensorState()
    advance(state, a_prediction(), RULES)
    return [hash_of(summary_fields(state, a_prediction()), SUMMARY_FIELDS), hash_of({"open": b"[["}, SUMMARY_FIELDS)]


def check_sensor_summary(data: bytes) -> None:
    summary = read_summary("s", hash_in(Reader(data), SUMMARY_FIELDS))
    assert all(isinstance(name, str) for name in (*summary.open, *summary.shelved))


ORDER = Order(5, "v", "name", "/bundle", "me", 7)
ORDER_FIELDS = tuple(_order_fields(ORDER, "live")) + tuple(_order_fields(ORDER, "shadow"))
REPORT = WorkerReport(
    "w", "g", 5, "v", "name", "/bundle", 9,
    Answer(5, Outcome.SWAPPED, "v", "u"), Answer(6, Outcome.REFUSED, "x", "", "why"),
    comparison=Comparison("v", "x", 3, {"rub": {"rub": 3}}),
)  # fmt: skip
REPORT_FIELDS = tuple(report_fields(REPORT))


def check_model_board(data: bytes) -> None:
    """Orders and reports of workers: whatever stands there is read, or not, but stops nobody."""
    reader = Reader(data)
    if reader.number(1) & 1:
        orders = _orders(hash_in(reader, ORDER_FIELDS))
        for order in (orders.live, orders.shadow):
            assert order is None or (order.generation >= 0 and isinstance(order.version, str))
    else:
        report = _read_report("w", hash_in(reader, REPORT_FIELDS))
        assert report.answer is None or isinstance(report.answer.outcome, Outcome)


def model_board_seeds() -> list[bytes]:
    orders = {**_order_fields(ORDER, "live"), **_order_fields(ORDER, "shadow")}
    return [b"\1" + hash_of(orders, ORDER_FIELDS), b"\0" + hash_of(report_fields(REPORT), REPORT_FIELDS)]


TARGETS = [
    Target(
        "alert",
        "an alert that is written the same, or DecodeError",
        check_alert,
        lambda: [encode_alert(an_alert()), b"{}", b'{"id":' + b"[" * 2000],
    ),
    Target(
        "alert-stream",
        "what a stranger writes into the stream is passed over; the cursor goes on",
        check_alert_stream,
        lambda: [
            entry(alert=encode_alert(an_alert()), n=b"7") + entry(alert=encode_alert(an_alert()), n=b"9"),
            entry(other=b"x") + entry(alert=b"{", n=b"-1"),
        ],
    ),
    Target("cursor", "a place in the stream, or BadCursor", check_cursor, lambda: [b"0", b"1732320000000-12", b"$"]),
    Target("alarm-state", "a state that is written the same, or BadState", check_alarm_state, state_seeds),
    Target("sensor-summary", "always a summary", check_sensor_summary, summary_seeds),
    Target("model-board", "always orders, or a report", check_model_board, model_board_seeds),
]
