"""The judge finds every way in which a run can be wrong: it is what all other proofs rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from deploy.chaos.judge import Verdict, judge
from deploy.chaos.poison import Poison
from deploy.chaos.workload import Truth
from stream.alarm_state import SensorState, Track
from stream.alerts import Alert, Priority, Transition
from stream.dead_letters import DeadLetter
from stream.predictions import HitFeatures, Prediction

FEATURES = HitFeatures(60.0, 40.0, 10.0, 100.0, 5, 1.0, 1.0, 0.0, False)


def prediction(sensor: str, start: int, knock: float = 0.75) -> Prediction:
    return Prediction(
        sensor=sensor,
        epoch_ns=0,
        start_sample=start,
        source_count=64,
        time_ns=start,
        end_time_ns=start + 64,
        source_rate_hz=1.0,
        flags=0,
        probabilities={"knock": knock, "drop": 1 - knock},
        unknown_score=0.1,
        unknown=False,
        model_version="one",
        features=FEATURES,
    )


def alert(sensor: str, number: int) -> Alert:
    return Alert(
        id=f"{sensor}-{number}",
        episode=sensor,
        number=number,
        transition=Transition.RAISED if number == 1 else Transition.CLEARED,
        sensor=sensor,
        condition="knock",
        priority=Priority.HIGH,
        fault=True,
        time_ns=number,
        epoch_ns=0,
        first_sample=0,
        start_sample=0,
        source_count=64,
        probability=0.75,
        model_version="one",
    )


def state(sensor: str, applied: int, version: str = "one") -> SensorState:
    return SensorState(sensor=sensor, windows=Track(0, 64, 64, 128, applied, version))


@dataclass
class Run:
    """A run in which everything holds; tests spoil it."""

    truth: Truth = field(
        default_factory=lambda: Truth(
            [prediction(sensor, start) for sensor in "ab" for start in (0, 64)],
            [alert("a", 1), alert("a", 2), alert("b", 1)],
            {sensor: state(sensor, 2) for sensor in "ab"},
        )
    )
    predictions: list[Prediction] = field(init=False)
    stream: list[Alert] = field(init=False)
    states: dict[str, SensorState] = field(init=False)
    collected: list[Alert] = field(init=False)
    poison: list[Poison] = field(default_factory=lambda: [Poison("frames", 0, 5, b"bad"), Poison("windows", 1, 6, b"")])
    letters: list[DeadLetter] = field(init=False)

    def __post_init__(self) -> None:
        self.predictions = list(self.truth.predictions)
        self.states = dict(self.truth.states)
        self.stream = [alert("b", 1), alert("a", 1), alert("a", 2)]  # sensors in any order
        self.collected = list(self.stream)
        self.letters = [
            DeadLetter("agent", "crc", "", one.topic, one.partition, one.offset, b"a", one.value) for one in self.poison
        ]

    def verdict(self) -> Verdict:
        return judge(self.truth, self.predictions, self.stream, self.states, self.collected, self.letters, self.poison)


def test_a_run_as_the_oracle_has_it_has_no_problems() -> None:
    verdict = Run().verdict()
    assert verdict.problems == []
    assert (verdict.windows, verdict.predictions_to_the_bit, verdict.alerts, verdict.poison) == (4, 4, 3, 2)


def copies(run: Run) -> None:
    run.predictions += run.predictions[:2]
    run.letters += run.letters


def another_model(run: Run) -> None:
    run.predictions[0] = msgspec.structs.replace(run.predictions[0], model_version="two")
    run.stream[0] = run.collected[0] = msgspec.structs.replace(run.stream[0], model_version="two")
    run.states["a"] = state("a", 2, "two")


@pytest.mark.parametrize("change", [copies, another_model])
def test_what_at_least_once_and_a_swap_bring_is_no_problem(change: Callable[[Run], None]) -> None:
    run = Run()
    change(run)
    assert run.verdict().problems == []


def lose_prediction(run: Run) -> None:
    del run.predictions[2]


def invent_prediction(run: Run) -> None:
    run.predictions.append(prediction("a", 999))


def bend_copy(run: Run) -> None:
    run.predictions.append(prediction("a", 0, knock=0.76))


def bend_features(run: Run) -> None:
    run.predictions[0] = msgspec.structs.replace(
        run.predictions[0], features=msgspec.structs.replace(FEATURES, counts=6)
    )


def lose_alert(run: Run) -> None:
    del run.stream[1]
    run.collected = list(run.stream)


def double_alert(run: Run) -> None:
    run.stream.append(run.stream[0])
    run.collected = list(run.stream)


def swap_alerts_of_a_sensor(run: Run) -> None:
    run.stream = [alert("a", 2), alert("a", 1), alert("b", 1)]
    run.collected = list(run.stream)


def bend_alert(run: Run) -> None:
    run.stream[0] = run.collected[0] = msgspec.structs.replace(run.stream[0], priority=Priority.LOW)


def leave_a_window_out(run: Run) -> None:
    run.states["b"] = state("b", 1)


def lose_state(run: Run) -> None:
    del run.states["a"]


def lose_for_subscriber(run: Run) -> None:
    del run.collected[0]


def double_for_subscriber(run: Run) -> None:
    run.collected.append(run.collected[-1])


def mix_for_subscriber(run: Run) -> None:
    run.collected.reverse()


def lose_letter(run: Run) -> None:
    del run.letters[0]


def letter_of_sound_input(run: Run) -> None:
    run.letters.append(replace(run.letters[0], offset=77))


def bend_letter(run: Run) -> None:
    run.letters[0] = replace(run.letters[0], raw=b"else")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lose_prediction, "1 windows without a prediction"),
        (invent_prediction, "1 predictions of windows that the oracle does not know"),
        (bend_copy, "1 predictions unlike the oracle's"),
        (bend_features, "1 predictions unlike the oracle's"),
        (lose_alert, "1 alerts missing: a-1"),
        (double_alert, "1 alerts too many: b-1"),
        (swap_alerts_of_a_sensor, "a: its alerts are in another order"),
        (bend_alert, "1 alerts that say something else"),
        (leave_a_window_out, "1 sensors whose alarm state is not the oracle's: b (1 windows applied, 2 by the oracle)"),
        (lose_state, "1 sensors whose alarm state is not the oracle's: a (0 windows applied"),
        (lose_for_subscriber, "1 alerts that the subscriber missed: b-1"),
        (double_for_subscriber, "1 alerts that the subscriber has too often: a-2"),
        (mix_for_subscriber, "the subscriber has the alerts in another order"),
        (lose_letter, "1 poisonous messages without a dead letter"),
        (letter_of_sound_input, "1 dead letters of messages that are none"),
        (bend_letter, "1 dead letters with other bytes"),
    ],
)
def test_each_way_in_which_a_run_can_be_wrong_is_told(spoil: Callable[[Run], None], problem: str) -> None:
    run = Run()
    spoil(run)
    assert any(said.startswith(problem) for said in run.verdict().problems), run.verdict().problems
