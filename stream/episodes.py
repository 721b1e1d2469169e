"""One alarm condition of one sensor: normal, raised, acknowledged, cleared, after ISA-18.2; pure, on event time.

The same machine serves the model's classes, "unknown" and the sensor's own health; what differs is the value it is
fed window by window and the rule it is given. `docs/alarms.md` draws the states.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from stream.alerts import Alert, Priority, Transition, run_of
from stream.predictions import HitFeatures

NS_PER_S = 1_000_000_000
MAX_N = 64
MAX_RAISES = 64


class RulesError(ValueError):
    """An alarm rule that cannot be: says which, what it holds and what would do."""


@dataclass(frozen=True, slots=True)
class ConditionRule:
    """When a condition is raised and when it is over. Values compared with the thresholds are 0 to 1.

    Continuous windows and hit windows are counted apart: a hit is a whole transient and stands for itself, whereas
    a continuous window shares half its samples with the next one.

    Raises
    ------
    RulesError
        If a number is out of its range.
    """

    priority: Priority = Priority.HIGH
    records_only: bool = False  #: one RECORDED alert for each burst, no episode stays open, no fault
    raise_threshold: float = 0.6  #: a window counts from this value on
    clear_threshold: float = 0.3  #: a window is quiet below this value
    k: int = 2  #: so many of the last n continuous windows must count
    n: int = 3
    within_s: float = 1.0  #: and begin within this time (or within n window lengths, where that is more)
    hit_k: int = 1  #: the same of hit windows
    hit_n: int = 1
    hit_within_s: float = 60.0
    raise_after_s: float = 0.0  #: and so it must stay for this long (on-delay)
    clear_after_s: float = 1.0  #: quiet for this long clears; of a recorded class: separates two bursts
    latching: bool = False  #: cleared only once acknowledged
    max_raises: int = 5  #: more raises than this within the period are chatter; 0: no limit
    chatter_period_s: float = 60.0  #: a chattering episode is held until quiet for this long

    def __post_init__(self) -> None:
        if not 0 <= self.clear_threshold <= self.raise_threshold <= 1:
            raise RulesError(
                f"clear_threshold {self.clear_threshold} and raise_threshold {self.raise_threshold}: "
                "wanted is 0 <= clear_threshold <= raise_threshold <= 1"
            )
        for k, n, prefix in ((self.k, self.n, ""), (self.hit_k, self.hit_n, "hit_")):
            if not 1 <= k <= n <= MAX_N:
                raise RulesError(f"{prefix}k {k} and {prefix}n {n}: wanted is 1 <= {prefix}k <= {prefix}n <= {MAX_N}")
        for name in ("within_s", "hit_within_s", "raise_after_s", "clear_after_s", "chatter_period_s"):
            if not 0 <= getattr(self, name) <= 1e9:
                raise RulesError(f"{name} is {getattr(self, name)}; wanted are 0 to 1e9 seconds")
        if not 0 <= self.max_raises <= MAX_RAISES:
            raise RulesError(f"max_raises is {self.max_raises}; wanted are 0 (no limit) to {MAX_RAISES}")


class Counted(msgspec.Struct, array_like=True, frozen=True):
    """A window over the raise threshold, waiting for others."""

    ordinal: int
    start_sample: int
    time_ns: int


class Episode(msgspec.Struct, omit_defaults=True):
    """From raise to clear; for a recorded class: from the first window of a burst to its last."""

    id: str
    epoch_ns: int
    first_sample: int
    priority: Priority
    burst: bool = False  #: of a recorded class: nobody sees it open
    number: int = 0  #: alerts published so far
    announced: bool = False  #: subscribers know of it; False while shelved
    acknowledged: bool = False
    returned: bool = False  #: quiet for long enough; latching keeps it open
    held: bool = False  #: chattering: open until quiet for the whole chatter period
    more: int = 0  #: raises that holding it has kept back
    lost_ns: int = 0  #: event time without a window, for the closing alert


class Condition(msgspec.Struct, omit_defaults=True):
    """What must be remembered of one condition; all defaults where there is nothing to tell."""

    windows: list[Counted] = []
    hits: list[Counted] = []
    standing_since: int | None = None  #: start sample with which the rule began to be met (on-delay running)
    standing_ns: int = 0
    quiet_ns: int = 0  #: event time seen below the clear threshold since the last window that was not
    raises: list[int] = []  #: times of the latest raises, ns
    episode: Episode | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One window as the machine sees it.

    `fresh_ns` is the event time this window shows for the first time; `idle_ns` the time before it that no window
    showed (0 where the epoch is new). For hits that time counts as quiet: the trigger was armed and nothing came.
    """

    sensor: str
    epoch_ns: int
    start_sample: int
    source_count: int
    time_ns: int
    end_ns: int
    hit: bool
    ordinal: int
    fresh_ns: int
    idle_ns: int
    new_epoch: bool
    late: bool = False
    unknown_score: float = 0.0
    model_version: str = ""
    features: HitFeatures | None = None


def episode_id(sensor: str, condition: str, epoch_ns: int, first_sample: int) -> str:
    r"""First 16 hex digits of SHA-256 over "sensor\\0condition\\0epoch_ns\\0first_sample" in UTF-8."""
    text = f"{sensor}\0{condition}\0{epoch_ns}\0{first_sample}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def step(
    name: str,
    condition: Condition,
    rule: ConditionRule,
    moment: Moment,
    value: float,
    *,
    counts: bool = True,
    shelved: bool = False,
    probability: float = 0.0,
    lost_ns: int = 0,
) -> list[Alert]:
    """Feed one window's value to one condition.

    Parameters
    ----------
    name, condition, rule
        The condition's name, its state (changed in place) and its rule.
    value
        Compared with the rule's thresholds. NaN neither counts nor is quiet.
    counts
        False where the value must not help to raise, whatever it is.
    shelved
        The state goes on, but nothing is raised or recorded for subscribers.
    probability
        For the alert.
    lost_ns
        Event time lost before this window, for the alert of a gap.

    Returns
    -------
    list of Alert
        In the order in which subscribers are to see them.
    """
    alerts: list[Alert] = []
    episode = condition.episode
    if episode is not None and episode.burst != rule.records_only:
        alerts += close(name, condition, moment, "the rule of this condition is another one now", shelved=shelved)
    alerts += _idle(name, condition, rule, moment, shelved)
    if moment.new_epoch:
        _start_over(condition)
    high = not value < rule.clear_threshold
    over = counts and value >= rule.raise_threshold
    episode = condition.episode
    if episode is None:
        condition.raises = _recent(condition.raises, rule, moment.end_ns)
        first_sample = _first_of_enough(condition, rule, moment, over)
        if first_sample is not None:
            open_episode(name, condition, rule, moment.sensor, moment.epoch_ns, first_sample, moment.end_ns)
            alerts += announce(name, condition, rule, moment, shelved, probability=probability, lost_ns=lost_ns)
        return alerts
    if over and episode.held and condition.quiet_ns >= _ns(rule.clear_after_s):
        episode.more += 1
        episode.lost_ns += lost_ns
    if high:
        condition.quiet_ns = 0
        episode.returned = False
    else:
        condition.quiet_ns += moment.fresh_ns
        alerts += _end_if_quiet(name, condition, rule, moment, moment.end_ns, shelved)
    return alerts + announce(name, condition, rule, moment, shelved, probability=probability)


def open_episode(
    name: str,
    condition: Condition,
    rule: ConditionRule,
    sensor: str,
    epoch_ns: int,
    first_sample: int,
    at_ns: int,
) -> Episode:
    """Begin an episode that nobody knows of yet; chatter is counted here, shelved or not."""
    recent = [*_recent(condition.raises, rule, at_ns), at_ns]
    condition.raises = recent[-rule.max_raises :] if rule.max_raises else []
    condition.windows, condition.hits = [], []
    condition.standing_since, condition.standing_ns = None, 0
    condition.quiet_ns = 0
    condition.episode = Episode(
        id=episode_id(sensor, name, epoch_ns, first_sample),
        epoch_ns=epoch_ns,
        first_sample=first_sample,
        priority=rule.priority,
        burst=rule.records_only,
        held=0 < rule.max_raises < len(recent),
    )
    return condition.episode


def announce(
    name: str,
    condition: Condition,
    rule: ConditionRule,
    moment: Moment,
    shelved: bool,
    *,
    at_ns: int | None = None,
    probability: float = 0.0,
    lost_ns: int = 0,
) -> list[Alert]:
    """Tell subscribers of an open episode, unless they know or the condition is shelved.

    A burst that began while shelved is never told: it has passed. An episode is, once the shelf has gone.
    """
    episode = condition.episode
    if episode is None or episode.announced or shelved or (episode.burst and condition.quiet_ns > 0):
        return []
    episode.announced = True
    note = f"chattering: held until quiet for {rule.chatter_period_s:g} s" if episode.held else ""
    transition = Transition.RECORDED if episode.burst else Transition.RAISED
    return [
        alert_of(
            name,
            episode,
            transition,
            moment,
            at_ns=moment.end_ns if at_ns is None else at_ns,
            probability=probability,
            lost_ns=lost_ns,
            note=note,
        )
    ]


def close(
    name: str, condition: Condition, moment: Moment, note: str = "", *, at_ns: int | None = None, shelved: bool = False
) -> list[Alert]:
    """End the episode. Subscribers hear of it if they know of the episode; of a burst only what was kept back."""
    episode = condition.episode
    condition.episode = None
    condition.quiet_ns = 0
    if episode is None or not episode.announced:
        return []
    if episode.burst and (episode.more == 0 or shelved):
        return []
    if episode.more:
        note = f"{note}{'; ' if note else ''}{episode.more} more while chattering"
    return [
        alert_of(
            name,
            episode,
            Transition.RECORDED if episode.burst else Transition.CLEARED,
            moment,
            at_ns=moment.end_ns if at_ns is None else at_ns,
            lost_ns=episode.lost_ns,
            note=note,
        )
    ]


def alert_of(
    name: str,
    episode: Episode,
    transition: Transition,
    moment: Moment,
    *,
    at_ns: int,
    probability: float = 0.0,
    lost_ns: int = 0,
    by: str = "",
    note: str = "",
) -> Alert:
    """The episode's next alert; counts its number up."""
    episode.number += 1
    alert = Alert(
        id=f"{episode.id}-{episode.number}",
        episode=episode.id,
        number=episode.number,
        transition=transition,
        sensor=moment.sensor,
        condition=name,
        priority=episode.priority,
        fault=not episode.burst,
        time_ns=at_ns,
        epoch_ns=episode.epoch_ns,
        first_sample=episode.first_sample,
        start_sample=moment.start_sample,
        source_count=moment.source_count,
        start_epoch_ns=None if moment.epoch_ns == episode.epoch_ns else moment.epoch_ns,
        model_version=moment.model_version,
        features=moment.features,
        run=run_of(moment.sensor),
        late=moment.late,
        by=by,
        note=note,
    )
    numbers = {"probability": probability, "unknown_score": moment.unknown_score, "lost_s": lost_ns / NS_PER_S}
    # Only the default itself is left out of the JSON, not another zero.
    return msgspec.structs.replace(alert, **{name: number for name, number in numbers.items() if number})


def _idle(name: str, condition: Condition, rule: ConditionRule, moment: Moment, shelved: bool) -> list[Alert]:
    """The time before this window that no window showed: quiet for hits, and it separates recorded bursts."""
    if condition.episode is None or moment.idle_ns == 0 or not (moment.hit or rule.records_only):
        return []
    condition.quiet_ns += moment.idle_ns
    needed_ns = _needed_ns(rule, condition.episode)
    return _end_if_quiet(
        name, condition, rule, moment, moment.time_ns - max(0, condition.quiet_ns - needed_ns), shelved
    )


def _start_over(condition: Condition) -> None:
    """A new epoch: windows before and after it are no evidence together, and a burst does not span it."""
    condition.windows, condition.hits = [], []
    condition.standing_since, condition.standing_ns = None, 0
    if condition.episode is not None and condition.episode.burst and not condition.episode.held:
        condition.episode = None
        condition.quiet_ns = 0


def _first_of_enough(condition: Condition, rule: ConditionRule, moment: Moment, over: bool) -> int | None:
    """Start sample of the first window of the evidence, once there is enough of it for long enough."""
    k, n, within_s = (rule.hit_k, rule.hit_n, rule.hit_within_s) if moment.hit else (rule.k, rule.n, rule.within_s)
    # Windows long against `within_s` must still be able to meet the rule.
    oldest_ns = moment.time_ns - max(_ns(within_s), n * (moment.end_ns - moment.time_ns))
    counted = [
        window
        for window in (condition.hits if moment.hit else condition.windows)
        if window.ordinal > moment.ordinal - n and window.time_ns >= oldest_ns
    ]
    if over:
        counted.append(Counted(moment.ordinal, moment.start_sample, moment.time_ns))
    if moment.hit:
        condition.hits = counted
    else:
        condition.windows = counted
    if len(counted) < k:
        condition.standing_since, condition.standing_ns = None, 0
        return None
    if condition.standing_since is None:
        condition.standing_since = counted[0].start_sample
        condition.standing_ns = moment.end_ns - counted[0].time_ns
    else:
        condition.standing_ns += moment.fresh_ns
    return condition.standing_since if condition.standing_ns >= _ns(rule.raise_after_s) else None


def _end_if_quiet(
    name: str, condition: Condition, rule: ConditionRule, moment: Moment, at_ns: int, shelved: bool
) -> list[Alert]:
    episode = condition.episode
    if episode is None or condition.quiet_ns < _needed_ns(rule, episode):
        return []
    if rule.latching and episode.announced and not episode.acknowledged and not episode.burst:
        episode.returned = True
        return []
    return close(name, condition, moment, at_ns=at_ns, shelved=shelved)


def _recent(raises: list[int], rule: ConditionRule, now_ns: int) -> list[int]:
    return [raised for raised in raises if now_ns - _ns(rule.chatter_period_s) < raised <= now_ns]


def _needed_ns(rule: ConditionRule, episode: Episode) -> int:
    return _ns(max(rule.chatter_period_s, rule.clear_after_s) if episode.held else rule.clear_after_s)


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
