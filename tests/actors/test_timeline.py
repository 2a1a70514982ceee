"""What an interruption cost is told right, whoever told of it."""

from sid_ray.actors.timeline import Timeline


def started(**kwargs) -> Timeline:
    line = Timeline(64, **kwargs)
    line.group_is(2, 1.0)
    line.stepped(64, 10.0)
    line.stepped(640, 20.0)
    return line


def test_a_failure_costs_what_was_after_the_checkpoint():
    line = started()
    line.stopped("worker 1 failed", False, 21.5)
    line.stopped("a second reason of the same failure", False, 21.7)
    line.mark("reserve", 22.0)
    line.group_is(1, 26.0)
    line.mark("start processes", 26.0)
    line.mark("build", 28.0)
    line.mark("load", 28.5)
    ended = line.stepped(512 + 64, 30.0)
    assert (ended.workers_before, ended.workers_after) == (2, 1)
    assert (ended.images_seen, ended.steps_lost, ended.seconds) == (512, 2, 10.0)
    assert list(ended.phases.values()) == [1.5, 0.5, 4.0, 2.0, 0.5, 1.5]
    assert str(ended).startswith("worker 1 failed; 1 worker after 2, 2 steps lost, 10.0 s (detect")
    assert line.stepped(640, 31.0) is None
    assert line.interruptions == [ended]


def test_a_pause_costs_no_step_and_names_its_saving():
    line = started()
    line.stopped("resized", True, 21.0)
    line.group_is(3, 25.0)
    ended = line.stepped(704, 30.0)
    assert (ended.steps_lost, ended.planned) == (0, True)
    assert next(iter(ended.phases)) == "save"
    assert "no step lost" in str(ended)


def test_a_step_that_is_told_after_its_group_stopped_ends_nothing():
    line = started()
    line.stopped("worker 1 died", False, 20.5)
    assert line.stepped(704, 20.4) is None
    line.group_is(1, 26.0)
    ended = line.stepped(512 + 64, 30.0)
    assert (ended.reason, ended.workers_after, ended.steps_lost) == ("worker 1 died", 1, 3)
    assert len(line.interruptions) == 1


def test_a_restart_that_nobody_told_of_is_noticed():
    line = started()
    line.group_is(2, 25.0)
    assert line.stepped(128, 30.0).steps_lost == 9


def test_a_start_that_fails_before_its_first_step_is_one_interruption():
    line = started()
    line.stopped("first", False, 21.0)
    line.group_is(2, 25.0)
    line.stopped("while loading", False, 26.0)
    line.group_is(1, 30.0)
    ended = line.stepped(704, 40.0)
    assert ended.reason == "first"
    assert ended.seconds == 20.0
    assert len(line.interruptions) == 1


def test_the_start_of_the_driver_is_told_but_is_no_interruption():
    line = Timeline(64, began=5.0, there=8.0)
    line.group_is(2, 12.0)
    line.mark("start processes", 12.0)
    told = line.stepped(64, 15.0)
    text = "first step of 2 workers after 10.0 s (start Ray 3.0, reserve 0.0, start processes 4.0"
    assert str(told).startswith(text)
    assert line.interruptions == []
    line.stopped("now it counts", False, 20.0)
    line.group_is(2, 25.0)
    assert line.stepped(128, 30.0) is not None
    assert len(line.interruptions) == 1
