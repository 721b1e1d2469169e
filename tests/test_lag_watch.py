from stream.lag_watch import LagWatch


def watch() -> LagWatch[str]:
    return LagWatch(patience_s=60)


def test_a_partition_that_stands_still_although_messages_wait_is_stuck():
    lag = watch()
    looks = [lag.look(now_s, {"a": 5, "b": 7}, {"a": 5, "b": 9}) for now_s in (0, 30, 60)]
    assert looks == [{}, {}, {"b": 2}]


def test_a_partition_that_moves_is_not_stuck_however_far_behind_it_is():
    lag = watch()
    assert not any(lag.look(now_s, {"a": now_s}, {"a": 10**6}) for now_s in range(0, 600, 30))


def test_a_partition_with_nothing_to_read_is_not_stuck():
    lag = watch()
    assert not any(lag.look(now_s, {"a": 5}, {"a": 5}) for now_s in range(0, 600, 30))


def test_patience_begins_when_there_is_something_to_read():
    lag = watch()
    assert lag.look(0, {"a": 5}, {"a": 5}) == {}
    assert lag.look(100, {"a": 5}, {"a": 6}) == {}
    assert lag.look(159, {"a": 5}, {"a": 6}) == {}
    assert lag.look(160, {"a": 5}, {"a": 6}) == {"a": 1}


def test_time_in_which_something_else_held_things_up_does_not_count():
    lag = watch()
    lag.look(0, {"a": 5}, {"a": 6})
    lag.forget()
    assert lag.look(100, {"a": 5}, {"a": 6}) == {}


def test_a_partition_that_was_away_in_between_gets_new_patience():
    lag = watch()
    lag.look(0, {"a": 5}, {"a": 6})
    lag.look(30, {}, {})
    assert lag.look(60, {"a": 5}, {"a": 6}) == {}


def test_a_partition_whose_end_nobody_knows_is_not_stuck():
    lag = watch()
    assert not any(lag.look(now_s, {"a": 5}, {}) for now_s in (0, 60, 120))
