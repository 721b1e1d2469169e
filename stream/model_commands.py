"""What a command does about models: pin up an order, and wait for what every worker says to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from stream.model_board import Answer, ModelBoard, Order, Outcome, Place

LOOK_EVERY_S = 0.2
#: Workers show themselves more often than this; where none does, there is none.
NOBODY_AFTER_S = 2.0


class Overtaken(Exception):  # noqa: N818 - says what is the matter
    """Somebody else has ordered another model meanwhile."""


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What one worker says; `answer` is None where it died, or kept silent until the time was over."""

    worker: str
    answer: Answer | None
    gone: bool = False

    @property
    def obeyed(self) -> bool:
        """Whether the worker does as ordered."""
        return self.answer is not None and self.answer.outcome not in (Outcome.REFUSED, Outcome.FAILED)


async def answers_to(board: ModelBoard, order: Order, place: Place, within_s: float) -> AsyncIterator[WorkerAnswer]:
    """What each worker says to `order`, as it comes; ends when all that run have spoken, or after `within_s`.

    A worker that begins meanwhile is heard too. Nothing comes where no worker runs, and then it does not take long.

    Raises
    ------
    Overtaken
        If there is a newer order for the same place.
    """
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    seen: set[str] = set()
    heard: set[str] = set()
    while True:
        reports = {report.worker: report for report in await board.workers()}
        now = (await board.orders()).of(place)
        if now is None or now.generation != order.generation:
            raise Overtaken(f"the order for {order.version or 'no shadow'} was overtaken by another one")
        seen |= reports.keys()
        for worker, report in reports.items():
            answer = report.answer_to(order, place)
            if worker not in heard and answer is not None:
                heard.add(worker)
                yield WorkerAnswer(worker, answer)
        for worker in sorted(seen - heard - reports.keys()):
            heard.add(worker)
            yield WorkerAnswer(worker, None, gone=True)
        passed_s = loop.time() - begun_s
        # Where all that ran have died, one that takes their place is waited for.
        if seen == heard and (reports or (not seen and passed_s > NOBODY_AFTER_S)):
            return
        if passed_s > within_s:
            for worker in sorted(seen - heard):
                yield WorkerAnswer(worker, None)
            return
        await asyncio.sleep(LOOK_EVERY_S)
