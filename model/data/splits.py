"""Which windows are trained on and which are held out: whole recordings, sensors or positions, never pieces of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet
from model.data.manifest import SPLITS

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.float64]
By = Literal["auto", "position", "sensor", "recording", "random-windows"]

ENOUGH_GROUPS = 4  #: positions, or sensors, for "auto" to split by them
MISSING = 1e3  #: weighs a label that a part lacks, though it need not; any number over what shares can come to
GREEDY_GROUPS = 4_000  #: groups that are dealt out in all attempts together, unless one attempt has more
MOST_MOVES = 200  #: by which a first attempt is bettered
TOLD_NAMES = 5

RANDOM_WINDOWS = (
    "windows were split at random: pieces of one recording lie on both sides, so the scores are better than "
    "what a new recording will get"
)


class SplitError(ValueError):
    """A split that cannot be made of these windows; the message names what is in the way and the way out."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Two parts that share no window."""

    train: Mask  #: (n,)
    held_out: Mask  #: (n,), the others
    kind: str  #: "position", "sensor", "recording" or "random windows": what was kept whole
    note: str  #: what a reader of the scores must know; may be empty


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Three parts that share no window; `test` and `validation` may be empty."""

    train: Mask  #: (n,)
    validation: Mask  #: (n,)
    test: Mask  #: (n,)
    kind: str  #: "manifest" where the data set says, else what was kept whole, as in `Split`
    note: str


def split(windows: WindowSet, *, by: By = "auto", share: float = 0.15, seed: int = 0) -> Split:
    """Hold out about `share` of each label, in whole groups; the same seed gives the same split.

    A label is on both sides if it is in two groups or more, and in training if it is in one.

    Parameters
    ----------
    by
        What a group is. "auto" takes the position if there are at least `ENOUGH_GROUPS` of them, each label is at two
        or more, and every window's is known; else the sensor likewise, if some sensor is heard in several recordings;
        else the recording. "random-windows" makes every window a group, which leaks.

    Raises
    ------
    SplitError
        If no label has two groups, or a window's group is not known.
    """
    if not 0 < share < 1:
        raise SplitError(f"a share of {share} cannot be held out; it lies between 0 and 1")
    kind = _kind(windows, by)
    groups = _groups(windows, kind)
    counts = _counts(groups, windows)
    alone = _labels_in_one_group(counts)
    if np.count_nonzero(counts.sum(axis=0)) == np.count_nonzero(alone):
        raise SplitError(
            f"no label has two {_plural(kind)}, so none can be heard in training and held out as well: "
            f"record more, say in a table which stretches are recordings of their own, or split by random-windows, "
            "knowing that its scores promise too much"
        )
    held = _hold_out(counts, share, np.random.default_rng(seed))
    held_out: Mask = held[groups]
    return Split(~held_out, held_out, kind, _note(windows, kind, ~held_out, held_out, alone))


def folds(windows: WindowSet, k: int, *, by: By = "auto", seed: int = 0) -> tuple[Split, ...]:
    """`k` splits, in each of which another k-th of each label is held out, in whole groups; every window once.

    Raises
    ------
    SplitError
        If there are fewer groups than folds, or a window's group is not known.
    """
    kind = _kind(windows, by)
    groups = _groups(windows, kind)
    counts = _counts(groups, windows)
    if not 2 <= k <= len(counts):
        raise SplitError(f"{len(counts)} {_plural(kind)} cannot make {k} folds; choose from 2 to {len(counts)}")
    number = _deal(counts, k, np.random.default_rng(seed))[groups]
    alone = _labels_in_one_group(counts)
    few = np.flatnonzero(((counts > 0).sum(axis=0) < k) & ~alone & (counts.sum(axis=0) > 0))
    sparse = ""
    if len(few):
        sparse = f"not every fold tests {_names(windows, few)}: fewer than {k} {_plural(kind)} of each"
    made = []
    for fold in range(k):
        held_out: Mask = number == fold
        note = _join(_note(windows, kind, ~held_out, held_out, alone), sparse)
        made.append(Split(~held_out, held_out, kind, note))
    return tuple(made)


def require_fold(splits: Iterable[str], fold: str) -> None:
    """Nothing, where one of the `splits` of a data set's clips is a fold of that name.

    Raises
    ------
    SplitError
        Saying which folds or parts there are.
    """
    named = sorted(set(splits) - {""})
    by_name = bool(named) and set(named) <= set(SPLITS)
    if by_name or fold not in named:
        has = f"parts {', '.join(named)}" if by_name else f"folds {', '.join(named)}" if named else "no folds"
        raise SplitError(f"fold {fold!r}: there is no such fold; the data set has {has}")


def parts(
    windows: WindowSet, *, fold: str | None = None, by: By = "auto", validation_share: float = 0.15, seed: int = 0
) -> Parts:
    """Training, validation and test part, as the data set says; what it does not say is held out of the training part.

    A data set that names train, validation and test is taken at its word. Of one with folds, `fold` is the test part
    and all others train; with no `fold` all train. A validation part that is not named is held out by `split`, unless
    its share is 0.

    Raises
    ------
    SplitError
        If there is no such fold, nothing to train on, or no validation part can be held out.
    """
    named = sorted(set(windows.splits.tolist()) - {""})
    by_name = bool(named) and set(named) <= set(SPLITS)
    if fold is not None:
        require_fold(named, fold)
    none = np.zeros(len(windows), dtype=np.bool_)
    note = ""
    if by_name:
        train, validation, test = (windows.splits == name for name in SPLITS)
        if not train.any():
            raise SplitError(f"the data set names {', '.join(named)} but no train part; there is nothing to train on")
    elif fold is not None:
        test = windows.splits == fold
        train, validation = ~test, none
        if not train.any():
            raise SplitError(f"fold {fold!r} is all of the data set; there is nothing to train on")
    else:
        train, validation, test = ~none, none, none
        if named:
            note = f"all folds ({', '.join(named)}) are trained on; name one to hold it out"
    said = by_name or fold is not None
    if validation.any() or validation_share == 0:
        return Parts(train, validation, test, "manifest" if said or not validation.any() else "", note)
    rows = np.flatnonzero(train)
    carved = split(_without_samples(windows, rows), by=by, share=validation_share, seed=seed)
    train, validation = none.copy(), none.copy()
    train[rows[carved.train]] = True
    validation[rows[carved.held_out]] = True
    how = f"validation was held out of the training part by {carved.kind}" if said else ""
    return Parts(train, validation, test, "manifest" if said else carved.kind, _join(note, how, carved.note))


def leaks(train: WindowSet, held_out: WindowSet) -> list[str]:
    """What the two share that they should not, a line each: recordings, sensors, positions, and identical windows.

    Sensors and positions that nobody knows ("") are not compared; nor are windows of one value, which silence makes.
    """
    found = []
    for kind, ours, theirs in (
        ("recording", train.recordings, held_out.recordings),
        ("sensor", train.sensors, held_out.sensors),
        ("position", train.positions, held_out.positions),
    ):
        shared = sorted((set(ours.tolist()) & set(theirs.tolist())) - {""})
        if shared:
            found.append(f"{len(shared)} {_plural(kind) if len(shared) > 1 else kind} on both sides: {_told(shared)}")
    heard = _hashes(train)
    again = [index for digest, index in _hashes(held_out).items() if digest in heard]
    if again:
        where = sorted({str(held_out.recordings[index]) for index in again})
        found.append(f"{len(again)} windows are sample for sample in both: held out in {_told(where)}")
    return found


# --- Groups ------------------------------------------------------------------------------------------------------


def _kind(windows: WindowSet, by: By) -> str:
    if by == "random-windows":
        return "random windows"
    if by != "auto":
        return by
    for kind in ("position", "sensor"):
        names = getattr(windows, _plural(kind))
        if not len(names) or (names == "").any():
            continue
        counts = _counts(_groups(windows, kind), windows)
        covers = len(counts) >= ENOUGH_GROUPS and not _labels_in_one_group(counts).any()
        # A sensor that is heard in one recording only is a smaller piece than the recording, not a larger one.
        if covers and (kind == "position" or _some_in_several(names, windows.recordings)):
            return kind
    return "recording"


def _some_in_several(names: npt.NDArray[np.str_], recordings: npt.NDArray[np.str_]) -> bool:
    pairs = np.unique(np.stack([np.unique(column, return_inverse=True)[1] for column in (names, recordings)]), axis=1)
    return bool(np.bincount(pairs[0]).max() > 1)


def _groups(windows: WindowSet, kind: str) -> npt.NDArray[np.int64]:
    """Number of each window's group, (n,)."""
    if kind == "random windows":
        return np.arange(len(windows))
    names = getattr(windows, _plural(kind))
    if unknown := np.count_nonzero(names == ""):
        raise SplitError(
            f"{unknown} of {len(windows)} windows do not say their {kind}; fill in the column {kind}, "
            "or split by another"
        )
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _counts(groups: npt.NDArray[np.int64], windows: WindowSet) -> Counts:
    """Windows of each group and label, (groups, labels)."""
    labels = len(windows.label_names)
    total = int(groups.max(initial=-1)) + 1
    return np.bincount(groups * labels + windows.labels, minlength=total * labels).reshape(total, labels).astype(float)


def _labels_in_one_group(counts: Counts) -> Mask:
    alone: Mask = (counts > 0).sum(axis=0) == 1
    return alone


def _hold_out(counts: Counts, share: float, rng: np.random.Generator) -> Mask:
    """Groups to hold out, (groups,): the best of several attempts, each dealt in random order and then bettered."""
    totals = counts.sum(axis=0)
    there = totals > 0
    shares = counts[:, there] / totals[there]
    wanted = (counts[:, there] > 0).sum(axis=0) > 1
    attempts = [_attempt(shares, wanted, share, rng) for _ in range(max(1, min(16, GREEDY_GROUPS // len(counts))))]
    return min(attempts, key=lambda held: float(_cost(shares[held].sum(axis=0), wanted, share)))


def _attempt(shares: Counts, wanted: Mask, share: float, rng: np.random.Generator) -> Mask:
    held = np.zeros(len(shares), dtype=np.bool_)
    part = np.zeros(shares.shape[1])
    cost = _cost(part, wanted, share)
    for group in rng.permutation(len(shares)):
        cost_with = _cost(part + shares[group], wanted, share)
        if cost_with < cost:
            held[group] = True
            part += shares[group]
            cost = cost_with
    for _ in range(MOST_MOVES):
        moved = part + np.where(held, -1.0, 1.0)[:, None] * shares
        costs = _cost(moved, wanted, share)
        best = int(costs.argmin())
        if costs[best] >= _cost(part, wanted, share) - 1e-9:
            break
        held[best] = not held[best]
        part = shares[held].sum(axis=0)
    return held


def _cost(part: Counts, wanted: Mask, share: float) -> Any:
    """How far the held-out share of each label, (…, labels), is from what it should be; the smaller the better."""
    lacking = wanted & (part < 1e-9)
    # A label that is not trained on is worse than any number that are not held out.
    lost = part > 1 - 1e-9
    return ((part - share) ** 2 + MISSING * lacking + MISSING * (len(wanted) + 1) * lost).sum(axis=-1)


def _deal(counts: Counts, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Fold of each group, (groups,): large groups first, each to where its labels are the rarest."""
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    dealt = np.zeros((k, counts.shape[1]))
    sizes = np.zeros(k)
    folds = np.empty(len(counts), dtype=np.int64)
    for group in order:
        # Rounded, so that sums of the same shares in another order are a tie, which the size decides.
        fold = int(np.lexsort((sizes, (dealt @ shares[group]).round(9)))[0])
        folds[group] = fold
        dealt[fold] += shares[group]
        sizes[fold] += counts[group].sum()
    return folds


# --- What to say -------------------------------------------------------------------------------------------------


def _note(windows: WindowSet, kind: str, train: Mask, held_out: Mask, alone: Mask) -> str:
    notes = [RANDOM_WINDOWS] if kind == "random windows" else []
    if alone.any():
        notes.append(f"one {_singular(kind)} only of {_names(windows, np.flatnonzero(alone))}: not on both sides")
    if kind in ("position", "sensor"):
        shared = set(windows.recordings[train].tolist()) & set(windows.recordings[held_out].tolist())
        if shared:
            notes.append(f"{len(shared)} recordings are heard on both sides, by other {_plural(kind)}")
    return _join(*notes)


def _names(windows: WindowSet, labels: npt.NDArray[np.int64]) -> str:
    return _told([windows.label_names[label] for label in labels])


def _told(names: list[str]) -> str:
    more = f" and {len(names) - TOLD_NAMES} more" if len(names) > TOLD_NAMES else ""
    return ", ".join(names[:TOLD_NAMES]) + more


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _singular(kind: str) -> str:
    return "window" if kind == "random windows" else kind


def _plural(kind: str) -> str:
    return _singular(kind) + "s"


def _without_samples(windows: WindowSet, rows: npt.NDArray[np.int64]) -> WindowSet:
    """Those rows, to be split: everything but the samples, which may be a memory map larger than the memory."""
    return WindowSet(
        windows=np.empty((len(rows), 0), dtype=np.int16),
        lengths=windows.lengths[rows],
        labels=windows.labels[rows],
        label_names=windows.label_names,
        rate_hz=windows.rate_hz,
        recordings=windows.recordings[rows],
        sensors=windows.sensors[rows],
        positions=windows.positions[rows],
        splits=windows.splits[rows],
    )


def _hashes(windows: WindowSet) -> dict[bytes, int]:
    """Index of a window with that content, for each content that is not one value throughout."""
    hashes: dict[bytes, int] = {}
    for index in range(len(windows)):
        samples = windows.windows[index, : windows.lengths[index]]
        if len(samples) and (samples != samples[0]).any():
            hashes[hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).digest()] = index
    return hashes
