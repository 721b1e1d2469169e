"""The board in Redis on which commands pin up the model that is wanted, and workers what they have made of it.

`docs/rollout.md` is the contract for readers. Nothing here loads a model, nor needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import msgspec
from redis.exceptions import WatchError

from stream.alert_store import Keys
from stream.redis_connection import connect
from stream.shadow_comparison import Comparison, decode_comparison, encode_comparison

#: A worker that has said nothing for so long is gone.
WORKER_GONE_S = 10.0

MAX_DIGITS = 20

Place = Literal["live", "shadow"]


class Outcome(StrEnum):
    """What a worker has made of an order."""

    LOADING = "loading"  #: at it; the answer is still to come
    SWAPPED = "swapped"  #: runs it now
    KEPT = "kept"  #: ran it already
    STARTED = "started"  #: began with it
    REFUSED = "refused"  #: does not run it; the reason says why
    OFF = "off"  #: runs no shadow, as ordered
    FAILED = "failed"  #: the shadow ran and broke; the reason says how


OUTCOMES = frozenset(Outcome)


@dataclass(frozen=True, slots=True)
class Order:
    """A model that is wanted of all workers; for the shadow an empty version means none."""

    generation: int  #: larger than that of every order before
    version: str
    name: str
    path: str  #: where the one who ordered found the bundle
    by: str
    at_ns: int  #: ns UTC


@dataclass(frozen=True, slots=True)
class Orders:
    """What is wanted; None where nobody ever ordered."""

    live: Order | None = None
    shadow: Order | None = None

    def of(self, place: Place) -> Order | None:
        """The order for one of the two places."""
        return self.live if place == "live" else self.shadow


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's word on an order."""

    generation: int  #: of the order
    outcome: Outcome
    version: str = ""  #: of the order
    before: str = ""  #: version that ran before (`swapped`)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one worker runs."""

    worker: str  #: id, unlike that of any other
    group: str
    started_ns: int  #: ns UTC
    version: str  #: of the live model
    name: str
    path: str
    windows: int  #: since the worker began
    answer: Answer | None = None
    shadow_answer: Answer | None = None
    shadow_skipped: int = 0  #: windows that the shadow had no time for
    shadow_unpublished: int = 0  #: its predictions that Kafka did not take
    comparison: Comparison | None = None  #: of live model and shadow, since one of them changed

    def answer_to(self, order: Order, place: Place) -> Answer | None:
        """The final word on `order`, if it has been said."""
        answer = self.answer if place == "live" else self.shadow_answer
        if answer is None or answer.generation != order.generation or answer.outcome == Outcome.LOADING:
            return None
        return answer


class ModelBoard:
    """Reads and writes it. Use it with `async with`, or close it.

    Every method raises `redis.exceptions.RedisError` or `OSError` where the server does not answer or refuses.
    """

    def __init__(self, url: str, prefix: str = "aewatch", *, timeout_s: float = 5.0) -> None:
        self.keys = Keys(prefix)
        self._redis: Any = connect(url, timeout_s)

    async def __aenter__(self) -> ModelBoard:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def orders(self) -> Orders:
        """What is wanted."""
        return _orders(await self._redis.hgetall(self.keys.model))

    async def order(self, place: Place, *, version: str, name: str, path: str, by: str) -> Order:
        """Want this model of all workers, from now on; of the shadow, an empty version wants none."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            while True:
                await pipeline.watch(self.keys.model)
                now = _orders(await pipeline.hgetall(self.keys.model))
                order = Order(_next_generation(now), version, name, path, by, time.time_ns())
                pipeline.multi()
                pipeline.hset(self.keys.model, mapping=_order_fields(order, place))
                try:
                    await pipeline.execute()
                except WatchError:
                    continue  # somebody else ordered in this moment; this order comes after theirs
                return order

    async def withdraw(self, place: Place, order: Order, before: Order | None) -> bool:
        """Want again what was wanted before `order`; False, and nothing is changed, if there is a newer order."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self.keys.model)
            now = _orders(await pipeline.hgetall(self.keys.model))
            if now.of(place) != order:
                return False
            pipeline.multi()
            if before is None:
                pipeline.hdel(self.keys.model, *_order_fields(order, place))
            else:
                again = replace(before, generation=_next_generation(now))
                pipeline.hset(self.keys.model, mapping=_order_fields(again, place))
            try:
                await pipeline.execute()
            except WatchError:
                return False
        return True

    async def exchange(self, report: WorkerReport) -> Orders:
        """Say what this worker runs, and hear what is wanted, in one round trip."""
        key = self.keys.model_worker(report.worker)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(key, mapping=_report_fields(report))
        pipeline.pexpire(key, int(WORKER_GONE_S * 1000))
        pipeline.sadd(self.keys.model_workers, report.worker)
        pipeline.hgetall(self.keys.model)
        return _orders((await pipeline.execute())[-1])

    async def leave(self, worker: str) -> None:
        """Take this worker off the board."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.delete(self.keys.model_worker(worker))
        pipeline.srem(self.keys.model_workers, worker)
        await pipeline.execute()

    async def workers(self) -> list[WorkerReport]:
        """All workers that have been heard of lately, by id."""
        ids = sorted(one.decode() for one in await self._redis.smembers(self.keys.model_workers))
        if not ids:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for one in ids:
            pipeline.hgetall(self.keys.model_worker(one))
        found = await pipeline.execute()
        return [_read_report(one, fields) for one, fields in zip(ids, found, strict=True) if fields]

    async def forget_dead(self) -> None:
        """Take those off the set of workers that have not been heard of for long."""
        ids = [one.decode() for one in await self._redis.smembers(self.keys.model_workers)]
        alive = {report.worker for report in await self.workers()}
        if dead := [one for one in ids if one not in alive]:
            await self._redis.srem(self.keys.model_workers, *dead)


def _start(place: Place) -> str:
    return "" if place == "live" else "shadow_"


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else 0


def _orders(fields: Mapping[bytes, bytes]) -> Orders:
    texts = _texts(fields)
    return Orders(_order(texts, "live"), _order(texts, "shadow"))


def _next_generation(now: Orders) -> int:
    latest = max((order.generation for order in (now.live, now.shadow) if order is not None), default=0)
    # Counted from 1, a key that was deleted would come again to a number that workers have answered.
    return max(latest + 1, time.time_ns() // 10**6)


def _order_fields(order: Order, place: Place) -> dict[str, str | int]:
    return {f"{_start(place)}{name}": value for name, value in asdict(order).items()}


def _order(texts: Mapping[str, str], place: Place) -> Order | None:
    start = _start(place)
    generation = _number(texts.get(f"{start}generation", ""))
    if not generation:
        return None
    return Order(
        generation=generation,
        version=texts.get(f"{start}version", ""),
        name=texts.get(f"{start}name", ""),
        path=texts.get(f"{start}path", ""),
        by=texts.get(f"{start}by", ""),
        at_ns=_number(texts.get(f"{start}at_ns", "")),
    )


def _report_fields(report: WorkerReport) -> dict[str, Any]:
    """All of them each time, so that none is left over from an earlier answer."""
    comparison = report.comparison
    return {
        "group": report.group,
        "started_ns": report.started_ns,
        "version": report.version,
        "name": report.name,
        "path": report.path,
        "windows": report.windows,
        **_answer_fields("", report.answer),
        "before": report.answer.before if report.answer else "",
        **_answer_fields("shadow_", report.shadow_answer),
        "shadow_skipped": report.shadow_skipped,
        "shadow_unpublished": report.shadow_unpublished,
        "shadow_windows": comparison.windows if comparison else 0,
        "shadow_agreed": comparison.agreed if comparison else 0,
        "comparison": encode_comparison(comparison) if comparison else b"",
    }


def _answer_fields(start: str, answer: Answer | None) -> dict[str, Any]:
    answer = answer or Answer(0, Outcome.OFF)
    return {
        f"{start}generation": answer.generation,
        f"{start}outcome": answer.outcome.value if answer.generation else "",
        f"{start}ordered": answer.version,
        f"{start}reason": answer.reason,
    }


def _read_report(worker: str, fields: Mapping[bytes, bytes]) -> WorkerReport:
    texts = _texts(fields)

    def number(name: str) -> int:
        return _number(texts.get(name, ""))

    def answer(start: str) -> Answer | None:
        generation, outcome = number(f"{start}generation"), texts.get(f"{start}outcome", "")
        if not generation or outcome not in OUTCOMES:
            return None
        return Answer(
            generation,
            Outcome(outcome),
            texts.get(f"{start}ordered", ""),
            texts.get(f"{start}before", ""),
            texts.get(f"{start}reason", ""),
        )

    comparison = None
    if written := texts.get("comparison"):
        try:
            comparison = decode_comparison(written.encode())
        except msgspec.DecodeError:
            comparison = None  # a worker of another release; the plain numbers beside it are still there
    return WorkerReport(
        worker=worker,
        group=texts.get("group", ""),
        started_ns=number("started_ns"),
        version=texts.get("version", ""),
        name=texts.get("name", ""),
        path=texts.get("path", ""),
        windows=number("windows"),
        answer=answer(""),
        shadow_answer=answer("shadow_"),
        shadow_skipped=number("shadow_skipped"),
        shadow_unpublished=number("shadow_unpublished"),
        comparison=comparison,
    )
