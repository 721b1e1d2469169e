"""`aewatch model`: look at bundles, store them, roll one out to the running workers; train the demo bundle."""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from deploy.settings import Settings
    from stream.model_board import ModelBoard, Order, Place, WorkerReport
    from stream.model_commands import WorkerAnswer
    from stream.shadow_comparison import Comparison


@click.group()
def model() -> None:
    """Look at a model bundle or an architecture; roll a bundle out; train the demo bundle."""


@model.command(short_help="Layers, sizes, labels and version of a bundle.")
@click.argument("bundle", required=False)
@click.option(
    "--channels", type=click.IntRange(8, 8192), help="Show the paper's network with so many channels instead."
)
def show(bundle: str | None, channels: int | None) -> None:
    """Print layers, shapes and parameter counts, rate, labels and version of BUNDLE (default: the settings')."""
    if bundle and channels:
        raise click.UsageError("name a bundle or give --channels, not both")
    in_force = settings()
    from model.bundle import BundleError
    from model.describe import describe_architecture, describe_bundle

    with plain_errors(BundleError, ValueError):
        click.echo(describe_architecture(channels) if channels else describe_bundle(in_force.bundle_path(bundle)))


@model.command("train-demo", short_help="Train the bundle that comes with the project.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write.")
@click.option("--seed", default=1, show_default=True, help="Draws data, weights and batches.")
def train_demo(out: Path, seed: int) -> None:
    """Train the bundle that comes with the project, on simulated positions other than the demo's."""
    settings()
    from deploy.train_demo import train_demo_bundle

    train_demo_bundle(out, seed=seed)


@model.command(short_help="Check a bundle and copy it into this host's store.")
@click.argument("bundle")
def add(bundle: str) -> None:
    """Check the bundle in folder BUNDLE and copy it into the model store of this host."""
    in_force = settings()
    from model.bundle import BundleError
    from model.bundle_store import add_bundle

    store = in_force.model.store.expanduser()
    with plain_errors(BundleError):
        card = add_bundle(store, in_force.bundle_path(bundle))
    click.echo(f"{card.version}  {card.name}  in {store / card.version}")


@model.command("list")
def list_bundles() -> None:
    """Print the bundles in the model store of this host."""
    in_force = settings()
    from model.bundle_store import stored_bundles

    store = in_force.model.store.expanduser()
    found = stored_bundles(store)
    for one in found:
        if one.card is None:
            click.echo(click.style(one.problem, fg="red"))
            continue
        card = one.card
        rate = "nominal" if card.rate_is_nominal else f"{card.rate_hz:g} Hz"
        click.echo(
            f"{card.version}  {card.name}  {rate}, windows of {card.window_samples} every {card.hop_samples} samples  "
            f"{', '.join(card.label_names)}  {card.training.date}"
        )
    if not found:
        click.echo(f"nothing in {store}; `aewatch model add BUNDLE` puts one there")


timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(1, 86400), default=120.0, show_default=True, help="Seconds to wait."
)


@model.command(short_help="Swap the workers to a bundle without stopping.")
@click.argument("bundle", metavar="VERSION|BUNDLE")
@timeout_option
def use(bundle: str, timeout_s: float) -> None:
    """Have all running workers swap to a bundle of the store, or to the one in a folder, without stopping.

    Ends with status 1 unless every worker does so.
    """
    in_force = settings()
    version, name, folder = _find(in_force, bundle)
    _run(in_force, lambda board: _give(board, "live", version, name, folder, timeout_s))


@model.command(short_help="Run a second bundle beside the live one; off ends it.")
@click.argument("bundle", metavar="VERSION|BUNDLE|off")
@timeout_option
def shadow(bundle: str, timeout_s: float) -> None:
    """Have all workers run a second bundle beside the live one, for comparison only; `off` ends it."""
    in_force = settings()
    version, name, folder = ("", "", "") if bundle == "off" else _find(in_force, bundle)
    _run(in_force, lambda board: _give(board, "shadow", version, name, folder, timeout_s))


@model.command(short_help="What is wanted, what every worker runs, how a shadow agrees.")
def status() -> None:
    """Print which model is wanted, what every worker runs, and how far a shadow agrees."""
    _run(settings(), _show_status)


def _find(in_force: Settings, named: str) -> tuple[str, str, str]:
    """Version, name and folder of a bundle that is named by its version in the store or by its folder."""
    from model.bundle import BundleError, read_card

    store = in_force.model.store.expanduser()
    stored, folder = store / named, in_force.bundle_path(named)
    found = next((place for place in (stored, folder) if place.is_dir()), None)
    if found is None:
        raise click.ClickException(
            f"{named}: neither a version in {store} nor a folder; `aewatch model list` prints what is there, "
            "`aewatch model add` puts a bundle in"
        )
    with plain_errors(BundleError):
        card = read_card(found)
    return card.version, card.name, str(found.resolve())


def _run(in_force: Settings, act: Callable[[ModelBoard], Awaitable[int]]) -> None:
    """Do something with the board; the exit status is what it returns."""
    from redis.exceptions import RedisError

    from stream.hidden_secrets import without_password
    from stream.model_board import ModelBoard
    from stream.model_commands import Overtaken
    from stream.redis_connection import way_out

    url = in_force.redis.connection_url()

    async def connected() -> int:
        async with ModelBoard(url, in_force.redis.prefix) as board:
            return await act(board)

    with plain_errors(Overtaken, ValueError):
        try:
            code = asyncio.run(connected())
        except BrokenPipeError:
            raise  # whoever read our output has gone; that is no trouble with Redis
        except (RedisError, OSError) as error:
            raise click.ClickException(
                f"{without_password(in_force.redis.url.get_secret_value())}: {error}; {way_out(error)}"
            ) from error
    raise SystemExit(code)


async def _give(board: ModelBoard, place: Place, version: str, name: str, folder: str, timeout_s: float) -> int:
    """Order a model and print what the workers say; 0 if all of them obey."""
    from stream.model_commands import answers_to

    by = f"{getpass.getuser()}@{socket.gethostname()}"
    before = (await board.orders()).of(place)
    order = await board.order(place, version=version, name=name, path=folder, by=by)
    answers = []
    async for answer in answers_to(board, order, place, timeout_s):
        answers.append(answer)
        click.echo(_answer_line(answer, order, timeout_s))
    if not answers:
        what = "the model" if place == "live" else "the shadow"
        click.echo(f"no worker runs; {what} is ordered, and those that start will take it", err=True)
        return 1
    there = [answer for answer in answers if not answer.gone]
    if there and all(answer.obeyed for answer in there):
        return 0
    refused = there and all(answer.answer is not None and not answer.obeyed for answer in there)
    if refused and await board.withdraw(place, order, before):
        click.echo("nobody took it, so the order is withdrawn; everything is as it was", err=True)
    else:
        click.echo("not everybody follows: `aewatch model status` shows who runs what", err=True)
    return 1


def _answer_line(said: WorkerAnswer, order: Order, timeout_s: float) -> str:
    from stream.model_board import Outcome

    answer = said.answer
    if said.gone:
        return click.style(f"{said.worker}  gone before it answered", fg="yellow")
    if answer is None:
        return click.style(f"{said.worker}  no answer within {timeout_s:g} s", fg="red")
    if not said.obeyed:
        return click.style(f"{said.worker}  {answer.outcome}: {answer.reason}", fg="red")
    words = {
        Outcome.SWAPPED: f"swapped  {answer.before} → {answer.version}",
        Outcome.KEPT: f"runs {answer.version} already",
        Outcome.STARTED: f"runs {order.version}",
        Outcome.OFF: "runs no shadow",
    }
    return f"{said.worker}  {words.get(answer.outcome, answer.outcome)}"


async def _show_status(board: ModelBoard) -> int:
    from stream.shadow_comparison import summed

    orders, workers = await board.orders(), await board.workers()
    click.echo(f"wanted  {_order_line(orders.live, 'what each worker has in its settings')}")
    click.echo(f"shadow  {_order_line(orders.shadow, 'none')}")
    click.echo("")
    for worker in workers:
        for line in _worker_lines(worker):
            click.echo(line)
    if not workers:
        click.echo("no worker runs")
    compared = [worker.comparison for worker in workers if worker.comparison is not None]
    for comparison in summed(compared):
        click.echo("")
        for line in _comparison_lines(comparison):
            click.echo(line)
    return 0


def _order_line(order: Order | None, otherwise: str) -> str:
    if order is None or not order.version:
        return otherwise
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(order.at_ns // 10**9))
    return f"{order.version}  {order.name}  since {at} by {order.by}, from {order.path}"


def _worker_lines(worker: WorkerReport) -> list[str]:
    from stream.model_board import Outcome

    lines = [f"{worker.worker}  {worker.version}  {worker.name}  {worker.windows:,} windows  group {worker.group}"]
    for place, answer in (("wanted", worker.answer), ("shadow", worker.shadow_answer)):
        if answer is None:
            continue
        if answer.outcome in (Outcome.REFUSED, Outcome.FAILED):
            lines.append(click.style(f"  {place} {answer.version} {answer.outcome}: {answer.reason}", fg="red"))
        elif answer.outcome == Outcome.LOADING:
            lines.append(f"  {place} {answer.version} is being loaded")
    shadow, compared = worker.shadow_answer, worker.comparison
    if shadow is not None and shadow.outcome == Outcome.STARTED:
        unpublished = f", {worker.shadow_unpublished:,} not published" if worker.shadow_unpublished else ""
        count = compared.windows if compared else 0
        lines.append(f"  shadow {shadow.version}  {count:,} windows, {worker.shadow_skipped:,} skipped{unpublished}")
    return lines


def _comparison_lines(one: Comparison) -> list[str]:
    labels = sorted({*one.pairs, *(label for row in one.pairs.values() for label in row)})
    width = max(len(label) for label in labels)
    lines = [
        f"live {one.live} and shadow {one.shadow}: {100 * one.agreement:.2f} % of {one.windows:,} windows alike, "
        f"probabilities {one.mean_difference:.4f} apart on average",
        f"unknown: live {100 * one.live_unknown / one.windows:.2f} %, "
        f"shadow {100 * one.shadow_unknown / one.windows:.2f} %",
        "rows: what the live model says; columns: the shadow",
        " " * width + "".join(f"  {label:>{max(8, len(label))}}" for label in labels),
    ]
    for label in labels:
        row = one.pairs.get(label, {})
        cells = "".join(f"  {row.get(other, 0):>{max(8, len(other))},}" for other in labels)
        lines.append(f"{label:<{width}}{cells}")
    return lines
