from deploy.replay_drain import late_note


def test_a_window_agent_that_is_late_may_be_held_up_by_a_sensor_that_stopped() -> None:
    told = late_note(60.0, "aewatch-windows", "ae.frames", 600.0)
    assert "after 60 s group aewatch-windows had not worked off ae.frames" in told
    assert "stop in mid-window? That holds up its commit for 600 s." in told
    assert "mid-window" not in late_note(60.0, "aewatch-workers", "ae.windows", None)
