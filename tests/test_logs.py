import json
import logging
from collections.abc import Iterator

import pytest

from deploy import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, *logs.OWN)]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


Captured = pytest.CaptureFixture[str]


def test_an_event_is_one_line_of_text_with_its_fields(capsys: Captured) -> None:
    logs.configure("INFO", "text")
    logging.getLogger("aewatch.worker").info("batch done", extra={"windows": 32})
    line = capsys.readouterr().err
    assert line.endswith("INFO    worker: batch done windows=32\n")
    assert line[:2] == "20"


def test_an_event_is_one_json_object_with_its_fields_and_traceback(capsys: Captured) -> None:
    logs.configure("INFO", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("aewatch.worker").exception("failed", extra={"sensor": "plant1/pümp"})
    event = json.loads(capsys.readouterr().err)
    assert (event["level"], event["message"], event["sensor"]) == ("ERROR", "failed", "plant1/pümp")
    assert "ValueError: broken" in event["traceback"]


def test_libraries_are_heard_from_warnings_on(capsys: Captured) -> None:
    logs.configure("INFO", "text")
    logging.getLogger("aiokafka").info("chatter")
    logging.getLogger("aiokafka").warning("trouble")
    heard = capsys.readouterr().err
    assert "chatter" not in heard
    assert "trouble" in heard


@pytest.mark.parametrize("module", ["producers.ingest", "stream.worker", "model.engine", "deploy.topics"])
def test_each_of_our_modules_is_heard_as_often_as_it_speaks(capsys: Captured, module: str) -> None:
    logs.configure("INFO", "text")
    for number in range(10):
        logging.getLogger(module).info("source %d: ended", number)
    assert capsys.readouterr().err.count("ended") == 10


def test_a_library_that_repeats_itself_is_damped_and_we_are_not(capsys: Captured) -> None:
    logs.configure("INFO", "text")
    for number in range(100):
        logging.getLogger("aiokafka").warning("no broker %d", number)
        logging.getLogger("aewatch.worker").warning("ours %d", number)
    heard = capsys.readouterr().err
    assert heard.count("no broker") == 3
    assert heard.count("ours") == 100


def test_what_was_left_out_is_counted_when_it_is_said_again() -> None:
    damper = logs.Damper(times=1, within_s=10.0)
    records = [logging.makeLogRecord({"name": "aiokafka", "msg": "away", "created": t}) for t in (0.0, 1.0, 2.0, 11.0)]
    assert [damper.filter(record) for record in records] == [True, False, False, True]
    assert vars(records[-1])["left_out_before"] == 2
