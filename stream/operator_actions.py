"""What an operator does to a sensor's alarms: acknowledge, shelve, unshelve. Pure, on the state."""

from __future__ import annotations

from stream.alarm_state import SensorState, Shelf
from stream.alerts import Alert, Priority, Transition, run_of
from stream.episodes import Condition, Moment, alert_of, close, episode_id


class OperatorError(ValueError):
    """A command that does not fit the state of the alarms."""


class EpisodeNotOpen(OperatorError):  # noqa: N818 - says what is the matter
    """There is no open episode of this id."""


class UnknownCondition(OperatorError):  # noqa: N818
    """The sensor's rules watch no such condition."""


class NotShelved(OperatorError):  # noqa: N818
    """The condition is not shelved."""


def acknowledge(state: SensorState, episode: str, *, at_ns: int, by: str, note: str = "") -> list[Alert]:
    """Say that somebody has seen an episode; one that has already gone (latching) is cleared with it.

    Parameters
    ----------
    state
        Changed in place.
    episode
        Its id.
    at_ns
        When this was done, ns UTC.

    Returns
    -------
    list of Alert
        Empty if it was acknowledged before.

    Raises
    ------
    EpisodeNotOpen
        Naming the sensor's open episodes.
    """
    for name, condition in state.conditions.items():
        found = condition.episode
        if found is None or found.id != episode or not found.announced or found.burst:
            continue
        if found.acknowledged:
            return []
        found.acknowledged = True
        moment = _last(state)
        alerts = [alert_of(name, found, Transition.ACKNOWLEDGED, moment, at_ns=at_ns, by=by, note=note)]
        if found.returned:
            alerts += close(name, condition, moment, at_ns=at_ns)
        return alerts
    raise EpisodeNotOpen(f"{state.sensor}: episode {episode} is not open; open there: {_open_episodes(state)}")


def shelve(state: SensorState, condition: str, *, until_ns: int, at_ns: int, by: str, note: str = "") -> list[Alert]:
    """Raise nothing for this condition until an event time; an episode that is open stays open.

    Shelving anew moves the end.

    Parameters
    ----------
    state
        Changed in place.
    until_ns
        Event time at which the shelf ends, ns UTC.
    at_ns
        When this was done, ns UTC.

    Raises
    ------
    UnknownCondition
        Naming the conditions that the sensor's rules watch.
    OperatorError
        If `until_ns` is not after the sensor's last window.
    """
    if condition not in state.known and condition not in state.conditions:
        raise UnknownCondition(f"{state.sensor}: no condition {condition!r}; watched are: {', '.join(state.known)}")
    moment = _last(state)
    if until_ns <= moment.end_ns:
        raise OperatorError(
            f"{state.sensor}: a shelf until event time {until_ns} ns ends before the sensor's last window "
            f"({moment.end_ns} ns); give a later time"
        )
    shelf = state.shelves.get(condition)
    if shelf is None:
        shelf = state.shelves[condition] = Shelf(
            episode=episode_id(state.sensor, f"{condition}\0shelved", at_ns, moment.start_sample),
            number=0,
            until_ns=until_ns,
            epoch_ns=moment.epoch_ns,
            first_sample=moment.start_sample,
        )
    shelf.until_ns, shelf.by = until_ns, by
    return [_of_shelf(state, condition, shelf, Transition.SHELVED, at_ns, by, note)]


def unshelve(state: SensorState, condition: str, *, at_ns: int, by: str, note: str = "") -> list[Alert]:
    """End a shelf; an episode that began meanwhile and is still open is raised now.

    Raises
    ------
    NotShelved
        Naming what is shelved on this sensor.
    """
    shelf = state.shelves.pop(condition, None)
    if shelf is None:
        shelved = ", ".join(sorted(state.shelves)) or "nothing"
        raise NotShelved(f"{state.sensor}: {condition!r} is not shelved; shelved there: {shelved}")
    alerts = [_of_shelf(state, condition, shelf, Transition.UNSHELVED, at_ns, by, note)]
    hidden = state.conditions.get(condition, Condition()).episode
    if hidden is not None and not hidden.announced and not hidden.burst:
        hidden.announced = True
        alerts.append(alert_of(condition, hidden, Transition.RAISED, _last(state), at_ns=at_ns, note="was shelved"))
    return alerts


def end_expired_shelves(state: SensorState, now_ns: int) -> list[Alert]:
    """Shelves whose time has come, as the sensor's event time reaches `now_ns`."""
    alerts = []
    for condition, shelf in list(state.shelves.items()):
        if shelf.until_ns <= now_ns:
            del state.shelves[condition]
            alerts.append(
                _of_shelf(state, condition, shelf, Transition.UNSHELVED, shelf.until_ns, shelf.by, "its time was over")
            )
    return alerts


def _of_shelf(
    state: SensorState, condition: str, shelf: Shelf, transition: Transition, at_ns: int, by: str, note: str
) -> Alert:
    moment = _last(state)
    shelf.number += 1
    return Alert(
        id=f"{shelf.episode}-{shelf.number}",
        episode=shelf.episode,
        number=shelf.number,
        transition=transition,
        sensor=state.sensor,
        condition=condition,
        priority=Priority.INFO,
        fault=False,
        time_ns=at_ns,
        epoch_ns=shelf.epoch_ns,
        first_sample=shelf.first_sample,
        start_sample=moment.start_sample,
        source_count=moment.source_count,
        start_epoch_ns=None if moment.epoch_ns == shelf.epoch_ns else moment.epoch_ns,
        model_version=moment.model_version,
        run=run_of(state.sensor),
        until_ns=shelf.until_ns,
        by=by,
        note=note,
    )


def _last(state: SensorState) -> Moment:
    """The sensor's last window, which is where it was when the operator acted."""
    track = state.latest
    if track is None:
        raise OperatorError(f"{state.sensor or 'the sensor'}: no window has been seen of it yet")
    return Moment(
        sensor=state.sensor,
        epoch_ns=track.epoch_ns,
        start_sample=track.start_sample,
        source_count=track.source_count,
        time_ns=track.end_ns,
        end_ns=track.end_ns,
        hit=track is state.hits,
        ordinal=track.count,
        fresh_ns=0,
        idle_ns=0,
        new_epoch=False,
        model_version=track.model_version,
    )


def _open_episodes(state: SensorState) -> str:
    names = [
        f"{condition.episode.id} ({name})"
        for name, condition in state.conditions.items()
        if condition.episode is not None and condition.episode.announced and not condition.episode.burst
    ]
    return ", ".join(names) or "none"
