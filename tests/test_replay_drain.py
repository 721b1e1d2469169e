from deploy.replay_drain import late_note


def test_a_report_that_lacks_alerts_names_a_sensor_that_is_late_and_the_way_out() -> None:
    told = late_note(60.0, ["replay/r/pump/ch0", "replay/r/pump/ch1"], 8)
    assert "after 60 s 2 of 8 sensors had not come through the pipeline to their end, replay/r/pump/ch0 first" in told
    assert "--wait gives them more time" in told
