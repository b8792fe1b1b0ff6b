"""When a dead process is started again and when not. Pure; the tests bring the time."""

from deploy.local.restarts import RestartPolicy, RestartRecord

POLICY = RestartPolicy(
    restarts_max=3,
    window_seconds=60,
    failed_starts_max=4,
    backoff_seconds=0.1,
    backoff_seconds_max=1.0,
    calm_seconds=10,
)


def test_waits_double_up_to_their_bound() -> None:
    record = RestartRecord(RestartPolicy(restarts_max=2_000, failed_starts_max=5))
    waits = [record.decide(now, served_seconds=1, exit_code=-9) for now in range(1_500)]
    assert waits[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert waits[-1] == 2.0
    assert record.count == 1_500


def test_a_process_that_served_for_a_while_is_started_again_at_once() -> None:
    record = RestartRecord(POLICY)
    record.decide(0, served_seconds=1, exit_code=-9)
    assert record.decide(1, served_seconds=1, exit_code=-9) == 0.2
    assert record.decide(20, served_seconds=18, exit_code=-9) == 0.1


def test_too_many_restarts_within_the_window_are_the_last() -> None:
    record = RestartRecord(POLICY)
    assert all(isinstance(record.decide(now, served_seconds=5, exit_code=1), float) for now in (0, 10, 20))
    assert record.decide(59, served_seconds=5, exit_code=1) == "it was restarted 3 times within 60 s"


def test_restarts_outside_the_window_are_forgotten() -> None:
    record = RestartRecord(POLICY)
    decisions = [record.decide(now, served_seconds=5, exit_code=1) for now in range(0, 3_000, 25)]
    assert all(isinstance(decision, float) for decision in decisions)


def test_a_program_that_cannot_start_is_not_tried_for_ever() -> None:
    record = RestartRecord(RestartPolicy(failed_starts_max=4))
    assert all(isinstance(record.decide(now, served_seconds=None, exit_code=1), float) for now in (0, 1, 2))
    assert record.decide(3, served_seconds=None, exit_code=1) == "it failed to start 4 times in a row"


def test_serving_once_clears_failed_starts() -> None:
    record = RestartRecord(RestartPolicy(failed_starts_max=2))
    record.decide(0, served_seconds=None, exit_code=1)
    record.decide(1, served_seconds=0.5, exit_code=1)
    assert isinstance(record.decide(2, served_seconds=None, exit_code=1), float)


def test_a_wrong_configuration_is_not_tried_again() -> None:
    assert RestartRecord(POLICY).decide(0, served_seconds=None, exit_code=2) == "its configuration is wrong"
