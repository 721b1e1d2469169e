from __future__ import annotations

import pytest

from model.bundle import Label
from model.bundle_making.roles import labels_with_roles, role_by_name


@pytest.mark.parametrize(
    ("label", "role"),
    [
        ("background", "background"),
        ("Background_noise", "background"),
        ("noise", "background"),
        ("noise_2", "background"),
        ("white noise", "background"),
        ("healthy", "background"),
        ("normal operation", "background"),
        ("none", "background"),
        ("no_leak", "background"),
        ("pencil_lead_break", "calibration"),
        ("PencilLeadBreak", "calibration"),
        ("PLB", "calibration"),
        ("hsu-nielsen", "calibration"),
        ("friction", "fault"),
        ("friction noise", "fault"),
        ("abnormal", "fault"),
        ("not healthy", "fault"),
        ("no background", "fault"),
        ("0", "fault"),
        ("", "fault"),
    ],
)
def test_a_label_that_does_not_say_that_all_is_well_is_a_fault(label: str, role: str) -> None:
    assert role_by_name(label) == role


def test_what_is_said_goes_before_what_a_name_suggests() -> None:
    assert labels_with_roles(("noise", "knock"), {"noise": "fault"}) == (
        Label("noise", "fault"),
        Label("knock", "fault"),
    )


def test_a_role_for_a_label_that_is_not_there_is_refused_and_so_is_a_role_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="role of knok: no such label; there are noise, knock"):
        labels_with_roles(("noise", "knock"), {"knok": "fault"})
    with pytest.raises(ValueError, match="role alarm of knock: a role is one of background, calibration, fault"):
        labels_with_roles(("noise", "knock"), {"knock": "alarm"})
