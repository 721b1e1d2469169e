"""A worker's ear for orders: loads the model that is wanted while the old one goes on, hands it over, and answers.

An order that cannot be followed changes nothing but the answer. `stream.model_board` is what is written in Redis,
`docs/rollout.md` what an operator sees.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from redis.exceptions import NoPermissionError, RedisError

from model.bundle import BundleCard, read_card
from model.bundle_store import find_bundle
from model.engine import Engine
from stream.alarms import AlarmRules
from stream.alert_store import is_transient
from stream.background_thread import background_thread
from stream.model_board import Answer, ModelBoard, Order, Orders, Outcome, Place, WorkerReport
from stream.model_fit import check_fit, check_shadow_fit
from stream.shadow import Shadow
from stream.worker import LiveModel, Worker

log = logging.getLogger("aewatch.rollout")

LOOK_EVERY_S = 0.5
COMPLAIN_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Loader:
    """How a bundle becomes a model that runs here."""

    places: Sequence[Path]  #: where bundles may lie on this host besides the path in an order, the first first
    store: Path  #: of bundles, each under its version
    engine: Callable[[Path], Engine]
    rules: Callable[[BundleCard], AlarmRules]

    def find(self, order: Order) -> Path:
        """The folder of the bundle that is ordered.

        Raises
        ------
        BundleError
            If it is not on this host.
        """
        return find_bundle(order.version, [self.store / order.version, Path(order.path), *self.places])

    def load(self, folder: Path, like: Engine | None = None) -> LiveModel:
        """The model in this folder, warm: for every length of windows that `like` has met.

        Raises
        ------
        BundleError, RulesError, ValueError
            If it cannot run here.
        """
        rules = self.rules(read_card(folder))
        engine = self.engine(folder)
        engine.warm_up(like)
        return LiveModel(engine, rules, folder)


async def await_orders(board: ModelBoard) -> Orders:
    """What is wanted, waiting for a Redis that is still starting: with an old model it would be the wrong start.

    Raises
    ------
    redis.exceptions.AuthenticationError
        If the server does not let this user in.
    """
    complained_s = -COMPLAIN_EVERY_S
    while True:
        try:
            return await board.orders()
        except NoPermissionError as error:
            log.error(
                "may not read which model is wanted, so the settings' one it is; docs/security.md has the rights",
                extra={"error": str(error)},
            )
            return Orders()
        except (RedisError, OSError) as error:
            if not is_transient(error):
                raise
            if time.monotonic() - complained_s >= COMPLAIN_EVERY_S:
                complained_s = time.monotonic()
                log.warning("Redis is away; it knows which model is wanted, waiting", extra={"error": str(error)})
            await asyncio.sleep(0.3)


def starting_model(order: Order | None, settings_bundle: Path, loader: Loader) -> tuple[LiveModel, Answer | None]:
    """The model to begin with: the one ordered, or where that does not do, the settings' own, and the word on it.

    Raises
    ------
    BundleError, RulesError, ValueError
        If the settings' own cannot be used.
    """
    own = read_card(settings_bundle)
    if order is None or not order.version:
        return loader.load(settings_bundle), None
    try:
        folder = loader.find(order)
        check_fit(own, read_card(folder))
        model = loader.load(folder)
    except Exception as error:
        reason = _reason(error)
        log.error(
            "THE MODEL THAT IS WANTED DOES NOT RUN HERE; beginning with the settings' one",
            extra={"wanted": order.version, "model": own.version, "bundle": str(settings_bundle), "reason": reason},
        )
        return loader.load(settings_bundle), Answer(order.generation, Outcome.REFUSED, order.version, reason=reason)
    if order.version != own.version:
        log.warning(
            "beginning with the model that was ordered, not with the settings' one",
            extra={"model": order.version, "settings": own.version, "by": order.by, "bundle": str(folder)},
        )
    return model, Answer(order.generation, Outcome.STARTED, order.version)


class Rollout:
    """Keeps one worker's models as ordered. `run` it beside the worker.

    Parameters
    ----------
    answer
        To the order that was known when the worker began.
    """

    def __init__(
        self, *, board: ModelBoard, worker: Worker, shadow: Shadow, loader: Loader, group: str, answer: Answer | None
    ) -> None:
        self._board = board
        self._worker = worker
        self._shadow = shadow
        self._loader = loader
        self._group = group
        self._id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._started_ns = time.time_ns()
        self._answer = answer
        self._shadow_answer: Answer | None = None
        self._following: dict[Place, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._thread = background_thread("load-model")

    async def run(self) -> None:
        """Look for orders and report, until cancelled; an absent Redis is waited out."""
        complained_s = -COMPLAIN_EVERY_S
        cleared = False
        try:
            while True:
                try:
                    if not cleared:
                        await self._board.forget_dead()
                        cleared = True
                    self._follow(await self._board.exchange(self._report()))
                except Exception as error:
                    # Whatever it is, windows are judged by the model that is there.
                    if time.monotonic() - complained_s >= COMPLAIN_EVERY_S:
                        complained_s = time.monotonic()
                        odd = not isinstance(error, RedisError | OSError)
                        log.warning("cannot hear which model is wanted", extra={"error": str(error)}, exc_info=odd)
                await self._pause()
        finally:
            for task in self._following.values():
                task.cancel()
            await asyncio.gather(*self._following.values(), return_exceptions=True)
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def leave(self) -> None:
        """Say that this worker is no more, if Redis can be reached."""
        try:
            async with asyncio.timeout(1.0):
                await self._board.leave(self._id)
        except (RedisError, OSError) as error:
            log.debug("could not leave the board", extra={"error": str(error)})

    async def _pause(self) -> None:
        """Until it is time to look again, or there is something to say."""
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    def _report(self) -> WorkerReport:
        live = self._worker.live
        return WorkerReport(
            worker=self._id,
            group=self._group,
            started_ns=self._started_ns,
            version=live.engine.card.version,
            name=live.engine.card.name,
            path=str(live.folder),
            windows=self._worker.counts.windows,
            answer=self._answer,
            shadow_answer=self._shadow_answer,
            shadow_skipped=self._shadow.skipped,
            shadow_unpublished=self._shadow.unpublished,
            comparison=self._shadow.comparison,
        )

    def _follow(self, orders: Orders) -> None:
        """Begin with what was not begun; one order at a time for each place, the newest one next."""
        if orders.live is None:
            self._answer = None  # the order was taken back; what runs goes on
        if orders.shadow is None and self._shadow_answer is not None and self._is_idle("shadow"):
            self._following["shadow"] = asyncio.create_task(self._end_shadow())
        if self._is_news(orders.live, self._answer, "live"):
            self._following["live"] = asyncio.create_task(self._take_live(orders.live))
        if self._is_news(orders.shadow, self._shadow_answer, "shadow"):
            self._following["shadow"] = asyncio.create_task(self._take_shadow(orders.shadow))

    def _is_news(self, order: Order | None, answer: Answer | None, place: Place) -> TypeGuard[Order]:
        if order is None or not self._is_idle(place):
            return False
        return answer is None or answer.generation != order.generation

    def _is_idle(self, place: Place) -> bool:
        task = self._following.get(place)
        return task is None or task.done()

    async def _take_live(self, order: Order) -> None:
        def say(outcome: Outcome, *, before: str = "", reason: str = "") -> None:
            self._answer = Answer(order.generation, outcome, order.version, before, reason)
            self._news.set()

        running = self._worker.live
        if order.version == running.engine.card.version:
            say(Outcome.KEPT)
            return
        say(Outcome.LOADING)
        log.info("loading", extra={"model": order.version, "by": order.by})
        try:
            loop = asyncio.get_running_loop()
            model = await loop.run_in_executor(self._thread, self._prepare, order, running.engine)
        except Exception as error:
            reason = _reason(error)
            log.error(
                "model refused, the old one stays",
                extra={"wanted": order.version, "model": running.engine.card.version, "reason": reason},
            )
            say(Outcome.REFUSED, reason=reason)
            return
        before = await self._worker.swap(model)
        say(Outcome.SWAPPED, before=before)

    def _prepare(self, order: Order, running: Engine) -> LiveModel:
        folder = self._loader.find(order)
        check_fit(running.card, read_card(folder))
        return self._loader.load(folder, like=running)

    async def _end_shadow(self) -> None:
        await self._shadow.switch_off()
        self._shadow_answer = None

    async def _take_shadow(self, order: Order) -> None:
        def say(outcome: Outcome, *, reason: str = "") -> None:
            self._shadow_answer = Answer(order.generation, outcome, order.version, reason=reason)
            self._news.set()

        if not order.version:
            await self._shadow.switch_off()
            say(Outcome.OFF)
            return
        say(Outcome.LOADING)
        running = self._worker.live.engine.card

        def load() -> Engine:
            folder = self._loader.find(order)
            check_shadow_fit(running, read_card(folder))
            engine = self._loader.engine(folder)
            engine.warm_up()
            return engine

        def failed(reason: str) -> None:
            say(Outcome.FAILED, reason=reason)

        try:
            await self._shadow.switch_on(load, failed)
        except Exception as error:
            reason = _reason(error)
            log.error("shadow refused", extra={"wanted": order.version, "reason": reason})
            say(Outcome.REFUSED, reason=reason)
            return
        say(Outcome.STARTED)


def _reason(error: Exception) -> str:
    """In a person's words where the error has them, else with its kind."""
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"
