"""Whether one model may take another's place while the stream goes on, or be its shadow. Pure."""

from __future__ import annotations

from model.bundle import BundleCard


class Misfit(ValueError):  # noqa: N818 - says what is the matter
    """A model that cannot take the place of the running one; the message says in what they differ."""


def check_fit(running: BundleCard, new: BundleCard) -> None:
    """Refuse a model whose place in the stream would be another one.

    Labels are compared by name: their order is free, since predictions and alarms go by names. Alarm state goes on from
    one model to the next, so each label must mean the same to the plant.

    Raises
    ------
    Misfit
        Naming everything that differs.
    """
    _refuse(running, new, [*_labels(running, new), *_windows(running, new)])


def check_shadow_fit(running: BundleCard, new: BundleCard) -> None:
    """Refuse a shadow for which the running model's windows are not what it was made for; its labels are free.

    Raises
    ------
    Misfit
        Naming everything that differs.
    """
    _refuse(running, new, _windows(running, new))


def _refuse(running: BundleCard, new: BundleCard, differences: list[str]) -> None:
    if differences:
        raise Misfit(
            f"model {new.version} ({new.name}) does not fit beside {running.version} ({running.name}): "
            f"{'; '.join(differences)}. Start window agents and workers anew with it as model.bundle"
        )


def _labels(running: BundleCard, new: BundleCard) -> list[str]:
    before, after = running.roles, new.roles
    differences = []
    if missing := sorted(before.keys() - after.keys()):
        differences.append(f"it lacks the labels {', '.join(missing)}")
    if added := sorted(after.keys() - before.keys()):
        differences.append(f"its labels {', '.join(added)} are new")
    differences += [
        f"{name} is {after[name]} in it, and {role} in the running one"
        for name, role in before.items()
        if after.get(name, role) != role
    ]
    return differences


def _windows(running: BundleCard, new: BundleCard) -> list[str]:
    pairs = [
        ("rate", _rate(new), _rate(running)),
        ("window", f"{new.window_samples} samples", f"{running.window_samples} samples"),
        ("hop", f"{new.hop_samples} samples", f"{running.hop_samples} samples"),
    ]
    return [f"its {name} is {after}, the stream's {before}" for name, after, before in pairs if after != before]


def _rate(card: BundleCard) -> str:
    """As far as it decides how windows are cut: a nominal rate does not, whatever its number."""
    return "nominal" if card.window_rate_hz is None else f"{float(card.window_rate_hz):g} Hz"
