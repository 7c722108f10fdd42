"""The log: one line an event, where the program wants it, and never on standard output."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from trunkline.actors.log import Log


def test_an_event_is_one_line_with_its_fields_and_the_traceback_below(caplog):
    Log("trunkline.tests").warning("door_closed", room="lobby", after_ms=5, exception="Traceback")
    [record] = caplog.records
    assert record.getMessage() == "door_closed room='lobby' after_ms=5\nTraceback"
    assert (record.name, record.levelname) == ("trunkline.tests", "WARNING")
    assert record.funcName == "test_an_event_is_one_line_with_its_fields_and_the_traceback_below"


def test_a_formatter_finds_the_event_and_its_fields_on_the_record(caplog):
    Log("trunkline.tests").error("door_closed", room="lobby")
    [record] = caplog.records
    assert (record.event, record.fields) == ("door_closed", {"room": "lobby"})


CRASH = """
    import anyio
    from trunkline.actors import Actor, Supervisor
    from trunkline.errors import ActorCrashed

    async def main():
        async with Supervisor() as supervisor:
            ref = await supervisor.spawn(Actor)
            try:
                await ref.call(lambda actor: 1 / 0)
            except ActorCrashed:
                pass

    import sys
    anyio.run(main)
    assert "structlog" not in sys.modules, "its import takes 70 ms of the event loop's time"
"""


def test_a_program_that_does_not_configure_logging_gets_the_log_on_standard_error():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CRASH)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == ""
    assert "actor_crashed" in done.stderr
    assert "ZeroDivisionError" in done.stderr
