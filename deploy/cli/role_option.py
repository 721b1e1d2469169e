"""The option --role: what a label means to an alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

ROLES = ("background", "calibration", "fault")


def role_option(otherwise: str) -> Callable[[Any], Any]:
    """The option, given to the command as `roles`, label → role; `otherwise` says what holds without it."""
    return click.option(
        "--role",
        "roles",
        multiple=True,
        metavar="LABEL=ROLE",
        callback=_roles,
        help=f"What a label means to an alarm: {', '.join(ROLES)}. {otherwise}",
    )


def _roles(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    roles = {}
    for value in values:
        name, _, role = value.rpartition("=")
        if not name or role not in ROLES:
            raise click.BadParameter(f"{value!r}; write LABEL=ROLE, and a role is one of {', '.join(ROLES)}")
        roles[name] = role
    return roles
