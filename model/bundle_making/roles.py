"""What a label means to an alarm, guessed from its name where nobody says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from model.bundle import Label, Role

ROLES: tuple[Role, ...] = get_args(Role)
NOTHING_HAPPENS = frozenset(
    ("ambient", "background", "baseline", "empty", "healthy", "idle", "intact", "normal", "ok", "quiet", "silence")
)
#: "friction noise" is friction; only a noise of this kind is nothing.
NOISE = frozenset(("electrical", "electronic", "noise", "pink", "random", "sensor", "white"))
TEST_PULSE = frozenset(("ast", "calibration", "hsu", "hsunielsen", "nielsen", "pencil", "plb", "pulser"))
WITHOUT = frozenset(("no", "none", "nothing", "without"))
NOT = frozenset(("not", "non"))


def role_by_name(label: str) -> Role:
    """The role that a label's words suggest.

    "background", "white noise" or "healthy" say that nothing happens, and so do "none" and "no leak"; "plb" or "pencil
    lead break" are the test pulse (Hsu-Nielsen source); whatever else is a fault, so that no fault is passed over for
    its name.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower()
    words = {word: None for word in re.split(r"[\W_\d]+", spaced) if word}  # in their order
    if TEST_PULSE & words.keys():
        return "calibration"
    quiet = bool(NOTHING_HAPPENS & words.keys()) or ("noise" in words and words.keys() <= NOISE)
    if WITHOUT & set(list(words)[:1]):
        return "fault" if quiet else "background"
    return "background" if quiet and not NOT & words.keys() else "fault"


def labels_with_roles(names: Sequence[str], said: Mapping[str, str]) -> tuple[Label, ...]:
    """Each name with the role that `said` gives it, or else the one that its name suggests.

    Raises
    ------
    ValueError
        If `said` names a label or a role that there is not.
    """
    for name, role in said.items():
        if name not in names:
            raise ValueError(f"role of {name}: no such label; there are {', '.join(names)}")
        if role not in ROLES:
            raise ValueError(f"role {role} of {name}: a role is one of {', '.join(ROLES)}")
    by_name: dict[str, Role] = {role: role for role in ROLES}
    return tuple(Label(name, by_name[said[name]] if name in said else role_by_name(name)) for name in names)
