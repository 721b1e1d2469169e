"""Frames of sources into Kafka, with a bar and keys where there is a terminal: what `simulate` and `replay` share."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.session import plain_errors

if TYPE_CHECKING:
    from deploy.cli.replay_keys import Key
    from deploy.settings import Settings
    from producers.publisher import PublisherCounts
    from producers.replay import Controls, FrameSink, Progress
    from producers.replay_track import InTurn, Passage
    from producers.sources import Source
    from stream.records import Frame

GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of it."""

    counts: PublisherCounts
    done: Progress
    failures: tuple[str, ...]  #: of recordings, while the others went on
    stopped: bool  #: by a signal or a key, before the end


def parse_rate(_context: click.Context, _parameter: click.Parameter, value: str) -> float | None:
    """`max` is None: as fast as possible."""
    if value == "max":
        return None
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a positive number nor 'max'")
    return rate


def publish(
    in_force: Settings,
    sources: Sequence[Source | InTurn],
    controls: Controls,
    passage: Passage | None = None,
    with_keys: bool = False,
    on_frame: Callable[[Frame], None] | None = None,
) -> Sent:
    """Publish until the sources end or SIGTERM, SIGINT or the key q comes.

    Whichever it is, what was taken is acknowledged before this returns. Says at the end what was sent; `on_frame` is
    told of each frame.
    """
    from producers.replay import replay

    def play(sink: FrameSink, note: Callable[[Progress], None]) -> Coroutine[Any, Any, Progress]:
        watched = sink if on_frame is None else _Watched(sink, on_frame)
        return replay(sources, watched, progress=note, passage=passage, controls=controls)

    return publish_playing(in_force, play, controls, _expected_s(sources, passage), with_keys)


def publish_playing(
    in_force: Settings,
    play: Callable[[FrameSink, Callable[[Progress], None]], Coroutine[Any, Any, Progress]],
    controls: Controls,
    expected_s: float | None,
    with_keys: bool = False,
) -> Sent:
    """Publish what `play` puts into a sink; it tells of its progress, and heeds `controls`. Else as `publish`.

    Parameters
    ----------
    expected_s
        How long what is played takes at its own pace; None if nobody knows.
    """
    from aiokafka.errors import KafkaError

    from deploy.cli.replay_keys import HELP, there_are_keys
    from deploy.topics import TopicError
    from producers.publisher import DeliveryError
    from producers.topic_replay import NoHistoryError

    if with_keys and there_are_keys():
        click.echo(HELP, err=True)
    elif controls.clock.paused:
        click.echo("paused, without a terminal to go on from; end it with SIGTERM", err=True)
    with plain_errors(TopicError, KafkaError, DeliveryError, NoHistoryError), _bar(expected_s) as advance:
        sent = asyncio.run(_play(in_force, play, controls, advance, with_keys))
    for failure in sent.failures:
        click.echo(f"failed: {failure}", err=True)
    if sent.done.most_behind_s > 0:
        click.echo(f"at most {sent.done.most_behind_s:.3f} s late", err=True)
    counts = sent.counts
    volume = f"{counts.acknowledged_samples} samples, {counts.acknowledged_bytes / 1e6:.1f} MB"
    click.echo(f"{counts.acknowledged_frames} frames, {volume} acknowledged", err=True)
    return sent


async def _play(
    in_force: Settings,
    play: Callable[[FrameSink, Callable[[Progress], None]], Coroutine[Any, Any, Progress]],
    controls: Controls,
    advance: Callable[[Progress], None],
    with_keys: bool,
) -> Sent:
    from deploy.kafka_rights import Uses
    from deploy.pipeline import stop_on_signals
    from deploy.topics import await_topics
    from producers.publisher import Publisher
    from producers.replay import IncompleteReplayError, Progress

    stop = stop_on_signals()
    done = Progress()
    failures: tuple[str, ...] = ()

    def note(progress: Progress) -> None:
        nonlocal done
        done = progress
        advance(progress)

    await await_topics(in_force.kafka, Uses(writes=(in_force.kafka.frames_topic,)))
    async with Publisher(in_force.kafka.client_options(), in_force.kafka.frames_topic) as publisher:
        playing = asyncio.create_task(play(publisher, note))
        stopping = asyncio.create_task(stop.wait())
        with _keys(controls, stop) if with_keys else contextlib.nullcontext():
            await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopped = stop.is_set()
        stopping.cancel()
        controls.stop()
        # Time for what has begun to be ended. A broker that is away must not take longer: leaving says what it has.
        await asyncio.wait({playing}, timeout=GRACE_S)
        playing.cancel()
        try:
            done = await playing
        except IncompleteReplayError as error:
            done, failures = error.done, tuple(map(str, error.failures))
        except asyncio.CancelledError:
            pass
    return Sent(publisher.counts, done, failures, stopped)


class _Watched:
    """A sink, and somebody who is told of each frame that it took."""

    def __init__(self, sink: FrameSink, on_frame: Callable[[Frame], None]) -> None:
        self._sink = sink
        self._on_frame = on_frame

    async def publish(self, frame: Frame) -> None:
        await self._sink.publish(frame)
        self._on_frame(frame)

    async def flush(self) -> None:
        await self._sink.flush()


def _keys(controls: Controls, stop: asyncio.Event) -> contextlib.AbstractContextManager[None]:
    from deploy.cli.replay_keys import Key, terminal_keys

    actions: dict[Key, Callable[[], None]] = {
        Key.PAUSE: controls.toggle_pause,
        Key.STEP: controls.step,
        Key.FASTER: controls.faster,
        Key.SLOWER: controls.slower,
        Key.QUIT: stop.set,
    }
    return terminal_keys(lambda key: actions[key]())


def _expected_s(sources: Sequence[Source | InTurn], passage: Passage | None) -> float | None:
    """Time of one turn, as far as the sources know theirs."""
    durations = [source.duration_s for source in sources]
    whole_s = None if None in durations else max((duration or 0.0 for duration in durations), default=0.0)
    if passage is None:
        return whole_s
    left_s = None if whole_s is None else max(0.0, whole_s - passage.start_ns / 1e9)
    if passage.end_ns is None:
        return left_s
    asked_s = (passage.end_ns - passage.start_ns) / 1e9
    return asked_s if left_s is None else min(asked_s, left_s)


@contextlib.contextmanager
def _bar(total_s: float | None) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr where somebody sees it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.fields[state]:>12}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[place]}, {task.fields[behind_s]:.2f} s behind"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total_s, state="", place=clock_text(0.0), behind_s=0.0)

        def advance(done: Progress) -> None:
            place = clock_text(done.position_s) + (f" of turn {done.turn}" if done.turn > 1 else "")
            bar.update(task, completed=done.played_s, state=state_text(done), place=place, behind_s=done.behind_s)

        yield advance


def state_text(done: Progress) -> str:
    """Pace, and whether it is paused: `x0.5`, `max`, `paused x2`."""
    return ("paused " if done.paused else "") + ("max" if done.rate is None else f"x{done.rate:g}")


def clock_text(position_s: float) -> str:
    """Hours, minutes and seconds, as `--start` takes them: `0:01:02.5`."""
    tenths = int(position_s * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
