"""Logs: one JSON object a line, numbers masked, refusals summed up."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared import logs
from shared.clock import Clock
from shared.settings import load


class Hand(Clock):
    """A clock that a test turns by hand."""

    at_ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.at_ms


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_the_fixed_fields(out: io.StringIO) -> None:
    logs.setup(load({}, None), "worker", version="1.2.3", stream=out)
    logs.get("worker.pool").info("claim.done", jobId="job_x", chunk=4)
    (line,) = lines(out)
    assert line | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "event": "claim.done",
        "logger": "worker.pool",
        "version": "1.2.3",
        "process": "worker",
        "jobId": "job_x",
        "chunk": 4,
    }


def test_numbers_are_masked_wherever_they_stand(out: io.StringIO) -> None:
    logs.setup(load({}, None), "api", stream=out)
    logger = logs.get("api")
    logger.info("x", text="to +15550000042!", bare="15550000042", phone=15550000042)
    logger.info(
        "x", nested={"a": ["+15550000042", {"15550000042": 1}]}, thing=ValueError("15550000042")
    )
    try:
        int("+15550000042 ?")
    except ValueError:
        logger.exception("x")
    logging.getLogger("somebody").warning("called %s", "+15550000042")
    assert "5550000042" not in out.getvalue()
    assert out.getvalue().count("…42") >= 7


def test_ids_codes_and_figures_are_left_alone(out: io.StringIO) -> None:
    logs.setup(load({}, None), "api", stream=out)
    given = {
        "jobId": "job_0123456789",
        "entry": "1795511671402-0",
        "at_ms": 1795511671402,
        "code": 130429,
    }
    logs.get("api").info("x", **given)
    assert lines(out)[0].items() >= given.items()


def test_below_the_level_nothing_is_written(out: io.StringIO) -> None:
    logs.setup(load({"LOG_LEVEL": "warning"}, None), "api", stream=out)
    logs.get("api").info("job.progress")
    assert out.getvalue() == ""


def test_strange_names_in_the_environment_are_said(out: io.StringIO) -> None:
    logs.setup(load({"WORKER_SLOT": "1"}, None), "api", stream=out)
    assert lines(out)[0]["event"] == "settings.warning"


def test_refusals_are_said_once_per_code_job_and_minute(out: io.StringIO) -> None:
    logs.setup(load({}, None), "worker", stream=out)
    clock = Hand()
    refusals = logs.Refusals(logs.get("worker"), clock)
    for _ in range(500):
        refusals.add("job_a", 130429, 400, "slow")
    refusals.add("job_b", 130429, 400, "slow")
    assert out.getvalue() == ""
    clock.at_ms += 60_000
    refusals.add("job_a", None, 429, "slow")
    assert [(x["jobId"], x["code"], x["http_status"], x["count"]) for x in lines(out)] == [
        ("job_a", 130429, 400, 500),
        ("job_b", 130429, 400, 1),
    ]
    refusals.flush()
    assert lines(out)[-1]["http_status"] == 429
