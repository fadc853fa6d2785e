"""The loop that runs the jobs that are missing."""

import logging

import pytest

from sidrec.study.runner import do_missing


def test_finished_jobs_are_skipped_and_a_failure_does_not_stop_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    finished, did = {"old"}, []

    def do(job: str) -> None:
        did.append(job)
        if job == "broken":
            raise OSError("disk on fire")
        finished.update({job, "elsewhere"})  # another process finishes one while this one works

    jobs = ["old", "first", "elsewhere", "broken", "last"]
    with caplog.at_level(logging.INFO):
        assert do_missing("small", jobs, lambda job: job in finished, do, (OSError,)) == ["broken"]
    assert did == ["first", "broken", "last"]
    assert "small: 5 runs, 1 of them finished" in caplog.text
    assert "broken failed: disk on fire" in caplog.text
    assert "1 of 4 runs failed: broken" in caplog.text


def test_an_unexpected_error_ends_the_loop() -> None:
    def do(job: str) -> None:
        raise KeyError(job)

    with pytest.raises(KeyError, match="first"):
        do_missing("small", ["first", "second"], lambda _: False, do, (OSError,))
