from __future__ import annotations

import pytest

from deploy.chaos.faults import KINDS, PROCESS_KINDS, Act, Role, draw_plan, kinds_named


def test_the_same_seed_draws_the_same_plan_and_another_seed_another_one() -> None:
    assert draw_plan(7, 90.0, 40) == draw_plan(7, 90.0, 40)
    assert draw_plan(7, 90.0, 40) != draw_plan(8, 90.0, 40)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_every_kind_in_order_of_time_and_some_at_once(seed: int) -> None:
    plan = draw_plan(seed, 90.0, len(KINDS))
    assert {(fault.act, fault.role) for fault in plan} == set(KINDS)
    moments = [fault.at_s for fault in plan]
    assert moments == sorted(moments)
    assert 0 < len(moments) - len(set(moments)) < len(moments) / 2
    assert all(2.0 <= at_s <= 90.0 for at_s in moments)


def test_what_is_frozen_is_frozen_for_longer_than_its_group_waits_for_it() -> None:
    lasts_s = {(fault.act, fault.role): fault.lasts_s for fault in draw_plan(1, 90.0, len(KINDS))}
    assert lasts_s[Act.FREEZE, Role.AGENT] > 6.0
    assert lasts_s[Act.FREEZE, Role.WORKER] > 10.0
    assert lasts_s[Act.CUT, Role.REDIS] == 30.0


def test_of_somebody_elses_cluster_only_processes_are_broken() -> None:
    assert {role for _, role in PROCESS_KINDS} == {Role.AGENT, Role.WORKER, Role.PRODUCER, Role.SUBSCRIBER, Role.KAFKA}
    assert [act for act, role in PROCESS_KINDS if role is Role.KAFKA] == [Act.POISON]
    assert not {Act.CUT, Act.SLOW, Act.RESET, Act.RESTART} & {act for act, _ in PROCESS_KINDS}


def test_kinds_are_called_as_the_tables_call_them_and_others_are_named_with_those_there_are() -> None:
    assert kinds_named(["kill worker", "cut redis"]) == ((Act.KILL, Role.WORKER), (Act.CUT, Role.REDIS))
    with pytest.raises(ValueError, match=r"'kill everybody'; there are kill agent, kill worker"):
        kinds_named(["kill everybody"])


def test_no_kind_or_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 kinds"):
        draw_plan(1, 90.0, 3, [])
    with pytest.raises(ValueError, match="within 1 s"):
        draw_plan(1, 1.0, 3)
