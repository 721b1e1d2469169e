"""The shadow: a second model that judges what the live one has judged. Its word is published and compared, no more.

It stands behind the live path and cannot hold it up: windows come to it when they are settled, through a short queue,
and what finds the queue full is skipped and counted. If it breaks, it is switched off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from model.engine import Engine
from stream.background_thread import background_thread
from stream.detect import judge_again
from stream.predictions import Prediction, encode_prediction
from stream.records import Window
from stream.shadow_comparison import Comparison

log = logging.getLogger("aewatch.shadow")

#: Batches that may wait; each holds the samples of its windows.
WAITING_BATCHES = 4


class Shadow:
    """The place for a second model beside a worker's own; empty until one is put there.

    Parameters
    ----------
    client_options
        For a Kafka producer of its own: what the broker refuses of a shadow must not trouble the live predictions.
    topic
        Where its predictions go.
    """

    def __init__(self, *, client_options: Mapping[str, Any], topic: str) -> None:
        self._client_options = dict(client_options)
        self._topic = topic
        self._thread = background_thread("shadow")
        self._queue: asyncio.Queue[tuple[Sequence[Window], Sequence[Prediction]]] = asyncio.Queue(WAITING_BATCHES)
        self._task: asyncio.Task[None] | None = None
        self._engine: Engine | None = None
        self.comparison: Comparison | None = None  #: with the live model; kept when it is switched off
        self.skipped = 0  #: windows that it had no time for
        self.unpublished = 0  #: predictions that Kafka did not take

    @property
    def version(self) -> str:
        """Of the model in the shadow; empty where there is none."""
        return "" if self._engine is None else self._engine.card.version

    async def switch_on(self, load: Callable[[], Engine], on_failure: Callable[[str], None]) -> None:
        """Put the model that `load` gives, called on the shadow's thread, in the place of what was there.

        `on_failure` is called with the reason if it breaks later on.

        Raises
        ------
        Exception
            Whatever `load` raises; the place is empty then.
        """
        await self.switch_off()
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._thread, load)
        self.comparison, self.skipped, self.unpublished = None, 0, 0
        self._engine = engine
        self._task = asyncio.create_task(self._work(engine, on_failure), name="shadow")
        log.info("shadow on", extra={"model": engine.card.version, "topic": self._topic})

    async def switch_off(self) -> None:
        """Empty the place; what waits in the queue is dropped."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._engine is not None:
            log.info("shadow off", extra=self.report())
        self._empty()

    async def close(self) -> None:
        """Switch it off for good."""
        await self.switch_off()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def offer(self, windows: Sequence[Window], live: Sequence[Prediction]) -> None:
        """Windows and what the live model has said of them, once all of it is safe. Never waits."""
        if self._engine is None or not windows:
            return
        try:
            self._queue.put_nowait((windows, live))
        except asyncio.QueueFull:
            self.skipped += len(windows)

    def report(self) -> dict[str, Any]:
        """Its figures for the log; empty where there is no shadow."""
        if self._engine is None:
            return {}
        figures: dict[str, Any] = {"shadow": self.version, "shadow_skipped": self.skipped}
        one = self.comparison
        if one is not None and one.windows:
            figures |= {
                "shadow_windows": one.windows,
                "shadow_agreement": round(one.agreement, 4),
                "shadow_difference": round(one.mean_difference, 4),
                "shadow_unknown": round(one.shadow_unknown / one.windows, 4),
                "live_unknown": round(one.live_unknown / one.windows, 4),
            }
        return figures

    def _empty(self) -> None:
        self._engine = None
        self._task = None
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _work(self, engine: Engine, on_failure: Callable[[str], None]) -> None:
        try:
            async with AIOKafkaProducer(
                acks=1, linger_ms=20, max_batch_size=128 * 2**10, **self._client_options
            ) as producer:
                while True:
                    windows, live = await self._queue.get()
                    loop = asyncio.get_running_loop()
                    predictions = await loop.run_in_executor(self._thread, judge_again, engine, windows, live)
                    self._compare(live, predictions)
                    await self._publish(producer, predictions)
        except Exception as error:
            # Nobody acts on what a shadow says, so nothing but the shadow may end with it.
            log.exception("shadow switched off, it broke; the live model goes on", extra={"model": self.version})
            self._empty()
            on_failure(f"{type(error).__name__}: {error}")

    def _compare(self, live: Sequence[Prediction], predictions: Sequence[Prediction]) -> None:
        ours, theirs = live[0].model_version, predictions[0].model_version
        if self.comparison is None or self.comparison.live != ours:
            self.comparison = Comparison(ours, theirs)
        self.comparison.add(live, predictions)

    async def _publish(self, producer: AIOKafkaProducer[bytes, bytes], predictions: Sequence[Prediction]) -> None:
        try:
            sent = [
                await producer.send(self._topic, encode_prediction(prediction), key=prediction.sensor.encode())
                for prediction in predictions
            ]
        except KafkaError as error:
            if not error.retriable:
                raise
            self.unpublished += len(predictions)
            return
        for result in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(result, KafkaError) and result.retriable:
                self.unpublished += 1
            elif isinstance(result, BaseException):
                raise result
