"""Trunkline: what a bot author holds."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from trunkline import FSMStore, Inbox, PersistenceStore, SessionRouter, Trunkline
from trunkline.errors import (
    ConfigurationError,
    InvalidModel,
    NotFound,
    NotRecorded,
    StoreUnavailable,
)
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.persistence import Message
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.settings import RouterSettings
from trunkline.testing import ManualClock, crash
from trunkline.turns.memory import MemoryInboxAdapter


@pytest.fixture
async def line():
    async with Trunkline("memory://", partition_count=2) as line:
        yield line


def hello(**changes):
    return {
        "channel": "telegram",
        "bridge_id": "bot",
        "external_room_id": 42,
        "external_user_id": 7,
        "external_message_id": 1,
        "content": "hello",
        **changes,
    }


async def send(route, content):
    return f"sent to {route.external_room_id}"


# -- ingest ----------------------------------------------------------------------------------------


async def test_a_message_makes_its_room_and_participant_and_is_stored(line):
    arrival = await line.ingest(
        **hello(room={"name": "Lobby", "type": "group"}, participant={"identity": {"name": "Ada"}})
    )

    room = await line.persistence.get_room_by_external_binding("telegram", "bot", 42)
    assert room == arrival.room
    assert (room.name, room.type) == ("Lobby", "group")
    ada = await line.persistence.get_or_create_participant_by_external_id("telegram", 7)
    assert ada == arrival.participant
    assert ada.identity == {"name": "Ada"}
    (message,) = await line.persistence.get_messages(room.id)
    assert message == arrival.message
    assert (message.content, message.sender_id, message.room_id) == ("hello", ada.id, room.id)
    assert message.metadata == {"channel": "telegram", "bridge_id": "bot"}
    assert not arrival.duplicate


async def test_a_second_message_finds_room_and_participant(line):
    first = await line.ingest(**hello())
    second = await line.ingest(**hello(external_message_id=2, room={"name": "another name"}))
    assert second.room == first.room
    assert second.participant == first.participant
    counts = await line.persistence.counts()
    assert (counts["rooms"], counts["participants"], counts["messages"]) == (1, 1, 2)


async def test_the_same_message_again_gives_the_stored_one(line):
    first = await line.ingest(**hello())
    again = await line.ingest(**hello(content="edited on the way"))
    assert again.duplicate
    assert again.message == first.message
    assert (await line.persistence.counts())["messages"] == 1


async def test_of_64_tasks_with_the_same_message_one_stores_it(line):
    arrivals = []

    async def ingest():
        arrivals.append(await line.ingest(**hello()))

    async with anyio.create_task_group() as task_group:
        for _ in range(64):
            task_group.start_soon(ingest)
    assert sum(not arrival.duplicate for arrival in arrivals) == 1
    assert len({arrival.message.id for arrival in arrivals}) == 1


async def test_two_chats_may_have_messages_of_the_same_id(line):
    first = await line.ingest(**hello())
    other = await line.ingest(**hello(external_room_id=43))
    assert not other.duplicate
    assert other.message.id != first.message.id


async def test_a_message_without_an_external_id_is_always_new(line):
    for _ in range(2):
        arrival = await line.ingest(**hello(external_message_id=None))
        assert not arrival.duplicate
    assert (await line.persistence.counts())["messages"] == 2


async def test_an_external_id_may_be_a_number_or_its_text(line):
    await line.ingest(**hello())
    again = await line.ingest(
        **hello(external_room_id="42", external_user_id="7", external_message_id="1")
    )
    assert again.duplicate


async def test_external_ids_on_other_channels_may_be_given_for_who_is_made(line):
    arrival = await line.ingest(**hello(participant={"external_ids": {"discord": "ada"}}))
    assert arrival.participant.external_ids == {"discord": "ada", "telegram": 7}
    found = await line.persistence.get_or_create_participant_by_external_id("discord", "ada")
    assert found.id == arrival.participant.id


class Evil:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: value}
            for name in ("channel", "bridge_id")
            for value in ("", None, 5, b"x", "a\0", "\ud800", "x" * 801, ["x"], Evil())
        ),
        *(
            {f"external_{what}_id": value}
            for what in ("room", "user", "message", "thread", "reply_to")
            for value in (
                "",
                True,
                1.5,
                b"x",
                "a\0",
                "\ud800",
                "x" * 801,
                10**800,
                10**5000,
                [1],
                Evil(),
            )
        ),
        {"external_room_id": None},
        *(
            {name: value}
            for name in ("room", "participant", "metadata")
            for value in (5, "x", [("a", 1)], {5: 6}, object())
        ),
        {"content": object()},
        {"content": Evil()},
        {"content": "\ud800"},
        {"content": float("nan")},
        {"metadata": {"a": object()}},
        {"room": {"type": "palace"}},
        {"room": {"id": "a\0"}},
        {"room": {"external_bindings": 5}},
        {"room": {"external_bindings": {"telegram": 5}}},
        {"room": {"external_bindings": {"telegram": {5: 6}}}},
        {"participant": {"shoe_size": 38}},
        {"participant": {"external_ids": 5}},
        {"participant": {"identity": "Ada"}},
        {"sent_at": "2026-01-01"},
        {"sent_at": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_message_that_cannot_be_stored_sets_no_route_either(line, changes):
    with pytest.raises(InvalidModel):
        await line.ingest(**hello(**changes))
    assert not any((await line.persistence.counts()).values())
    assert line.router.stats().total.entries == 0


@pytest.mark.parametrize("server", ["memory", "sqlite", "postgresql"])
async def test_a_channel_in_the_metadata_that_is_no_text_finds_no_message(server, request):
    url = request.getfixturevalue("postgres_url") if server == "postgresql" else f"{server}://"
    async with Trunkline(url, fsm=None, signal=None) as line:
        await save_odd_channels(line)


async def save_odd_channels(line):
    arrival = await line.ingest(**hello())
    for channel in ({"a": ["x" * 5_000]}, 5, ["telegram"], None, ""):
        metadata = {"channel": channel, "bridge_id": "bot"}
        message = Message.new(room_id=arrival.room.id, external_id=9, metadata=metadata)
        assert await line.persistence.save_message(message) == message
        assert message.external_scope is None
        with pytest.raises(NotFound):
            await line.persistence.get_message_by_external_id("telegram", "bot", 9)


# -- threads and replies ---------------------------------------------------------------------------


async def test_a_message_in_a_thread_makes_the_thread_and_is_listed_in_it(line):
    first = await line.ingest(**hello(external_thread_id=5))
    second = await line.ingest(**hello(external_thread_id="5", external_message_id=2))
    await line.ingest(**hello(external_message_id=3))

    (thread,) = await line.persistence.list_threads(first.room.id)
    assert (thread.external_thread_id, thread.room_id) == (5, first.room.id)
    assert first.message.thread_id == second.message.thread_id == thread.id
    listed = await line.persistence.get_messages(first.room.id, thread_id=thread.id)
    assert listed == [first.message, second.message]
    assert await line.persistence.get_thread_by_external_id(first.room.id, 5) == thread


async def test_two_rooms_may_have_threads_of_the_same_id(line):
    first = await line.ingest(**hello(external_thread_id=5))
    other = await line.ingest(**hello(external_thread_id=5, external_room_id=43))
    assert first.message.thread_id != other.message.thread_id


async def test_of_64_tasks_in_a_new_thread_one_makes_it(line):
    async with anyio.create_task_group() as task_group:
        for number in range(64):
            task_group.start_soon(
                partial(line.ingest, **hello(external_thread_id=5, external_message_id=number))
            )
    assert (await line.persistence.counts())["threads"] == 1


async def test_a_reply_knows_the_message_that_it_answers_within_its_room(line):
    first = await line.ingest(**hello())
    await line.ingest(**hello(external_room_id=43))
    reply = await line.ingest(**hello(external_message_id=2, external_reply_to_id="1"))
    assert reply.message.reply_to_id == first.message.id
    unknown = await line.ingest(**hello(external_message_id=3, external_reply_to_id=77))
    assert (unknown.message.reply_to_id, unknown.message.external_reply_to_id) == (None, 77)


async def test_a_reply_to_an_answer_of_the_bot_knows_it(line):
    arrival = await line.ingest(**hello())

    async def send_as_99(route, content):
        return 99

    answer = await line.deliver(arrival, "hi", send_as_99)
    reply = await line.ingest(**hello(external_message_id=100, external_reply_to_id=99))
    assert reply.message.reply_to_id == answer.id


async def test_an_external_id_is_looked_up_within_a_room(line):
    first = await line.ingest(**hello())
    other = await line.ingest(**hello(external_room_id=43))
    for arrival in (first, other):
        found = await line.persistence.get_message_by_external_id(
            "telegram", "bot", 1, room_id=arrival.room.id
        )
        assert found == arrival.message


async def test_a_line_without_persistence_routes_all_the_same():
    async with Trunkline("memory://", persistence=None) as line:
        arrival = await line.ingest(**hello())
        answer = await line.deliver(arrival, "hi", send)
        assert answer.external_id == "sent to 42"
        assert arrival.session_key == ("telegram", "bot", "42", None)


@pytest.mark.slow
async def test_the_same_message_in_two_processes_is_stored_once(tmp_path):
    program = """
import anyio, sys
from trunkline import FSMStore, PersistenceStore, SessionRouter, Trunkline
async def main():
    async with Trunkline(sys.argv[1], fsm=None, signal=None) as line:
        for number in range(100):
            await line.ingest(channel="telegram", bridge_id="bot", external_room_id=number % 5,
                              external_user_id=number % 7, external_message_id=number,
                              content=str(number))
anyio.run(main)
"""
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    programs = [subprocess.Popen([sys.executable, "-c", program, url]) for _ in range(3)]
    assert [program.wait(timeout=300) for program in programs] == [0, 0, 0]
    async with Trunkline(url) as line:
        counts = await line.persistence.counts()
    assert (counts["rooms"], counts["participants"], counts["messages"]) == (5, 7, 100)


async def test_messages_of_one_second_keep_the_order_in_which_they_came(line):
    sent_at = datetime(2026, 1, 1, tzinfo=UTC)
    texts = [str(number) for number in range(20)]
    for number, text in enumerate(texts):
        arrival = await line.ingest(
            **hello(external_message_id=number, content=text, sent_at=sent_at)
        )
    stored = await line.persistence.get_messages(arrival.room.id)
    assert [message.content for message in stored] == texts
    assert stored[0].metadata["sent_at"] == "2026-01-01T00:00:00+00:00"


# -- the way back ----------------------------------------------------------------------------------


async def test_the_answer_goes_where_the_message_came_from(line):
    arrival = await line.ingest(**hello())
    answer = await line.reply_route(arrival)
    assert (answer.external_room_id, answer.source) == (42, "state_hit")
    assert answer.route.room_id == arrival.room.id


async def test_a_message_in_a_thread_sets_the_route_of_its_room_too(line):
    arrival = await line.ingest(**hello(external_thread_id=5))
    assert arrival.session_key.thread_id == "5"
    in_thread = await line.router.resolve(arrival.session_key)
    in_room = await line.router.resolve(arrival.session_key.room_scope)
    assert (in_thread.source, in_thread.route.thread_id) == ("state_hit", "5")
    assert (in_room.source, in_room.route.thread_id) == ("state_hit", None)


async def test_the_origin_is_the_fallback_when_the_route_is_missing():
    clock = ManualClock()
    async with Trunkline("memory://", ttl_ms=1_000, clock=clock) as line:
        arrival = await line.ingest(**hello())
        clock.advance_ms(1_000)
        answer = await line.reply_route(arrival)
        assert (answer.external_room_id, answer.source) == (42, "provided_fallback")


async def test_the_origin_is_the_fallback_while_the_partition_is_down(line):
    arrival = await line.ingest(**hello())
    await crash(line.router.partition(arrival.session_key))
    answer = await line.reply_route(arrival)
    assert (answer.external_room_id, answer.fallback_reason) == (42, "session_unavailable")


# -- deliver ---------------------------------------------------------------------------------------


async def test_an_answer_is_stored_sent_and_its_external_id_recorded(line):
    arrival = await line.ingest(**hello())
    answer = await line.deliver(arrival, "hi", send)

    assert (answer.status, answer.external_id) == ("sent", "sent to 42")
    assert answer.reply_to_id == arrival.message.id
    assert await line.persistence.get_message(answer.id) == answer
    found = await line.persistence.get_message_by_external_id("telegram", "bot", "sent to 42")
    assert found.id == answer.id


async def test_an_answer_is_on_disk_before_it_is_sent(line):
    arrival = await line.ingest(**hello())
    statuses = []

    async def look(route, content):
        _, answer = await line.persistence.get_messages(arrival.room.id)
        statuses.append(answer.status)

    await line.deliver(arrival, "hi", look)
    assert statuses == ["sending"]


async def test_an_answer_that_cannot_be_sent_is_stored_as_failed(line):
    arrival = await line.ingest(**hello())

    async def fail(route, content):
        raise ConnectionError("the platform is away")

    with pytest.raises(ConnectionError):
        await line.deliver(arrival, "hi", fail)
    _, answer = await line.persistence.get_messages(arrival.room.id)
    assert answer.status == "failed"


async def test_an_answer_whose_sending_is_cancelled_is_stored_as_failed(line):
    arrival = await line.ingest(**hello())
    sending = anyio.Event()

    async def hang(route, content):
        sending.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(line.deliver, arrival, "hi", hang)
        await sending.wait()
        task_group.cancel_scope.cancel()
    _, answer = await line.persistence.get_messages(arrival.room.id)
    assert answer.status == "failed"


NATIVE = [pytest.param(("asyncio", {"use_uvloop": uvloop}), id=f"{uvloop=}") for uvloop in (0, 1)]


async def cancelled_by_wait_for(started, deliver):
    task = asyncio.ensure_future(asyncio.wait_for(deliver, 3_600))
    await started()
    task.cancel()
    await task


async def cancelled_by_timeout(started, deliver):
    async with asyncio.timeout(None) as timeout:

        def expire(_):
            with suppress(RuntimeError):  # it has been left already
                timeout.reschedule(0)

        waiting = asyncio.ensure_future(started())
        waiting.add_done_callback(expire)
        await deliver


async def cancelled_by_task_cancel(started, deliver):
    task = asyncio.ensure_future(deliver)
    await started()
    task.cancel()
    await task


async def cancelled_by_task_cancel_again_and_again(started, deliver):
    task = asyncio.ensure_future(deliver)
    await started()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    await task


async def cancelled_by_a_scope(started, deliver):
    async with anyio.create_task_group() as task_group:

        async def cancel():
            await started()
            task_group.cancel_scope.cancel()

        task_group.start_soon(cancel)
        await deliver
    await anyio.lowlevel.checkpoint_if_cancelled()


async def cancelled_by_a_sibling(started, deliver):
    async def fail():
        await started()
        raise TimeoutError

    async def run():
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(fail)
            await deliver

    with pytest.raises(ExceptionGroup):
        await run()


WAYS = [
    cancelled_by_wait_for,
    cancelled_by_timeout,
    cancelled_by_task_cancel,
    cancelled_by_task_cancel_again_and_again,
    cancelled_by_a_scope,
    cancelled_by_a_sibling,
]


async def deliver_and_cancel(line, arrival, cancel, turns, send):
    """Deliver an answer, and cancel that so many turns of the event loop after it began to send."""
    sending = anyio.Event()

    async def started():
        await sending.wait()
        for _ in range(turns):
            await checkpoint()

    async def note_and_send(route, content):
        sending.set()
        return await send(route, content)

    with suppress(asyncio.CancelledError, TimeoutError):
        await cancel(started, line.deliver(arrival, str(turns), note_and_send))


@pytest.mark.parametrize("anyio_backend", NATIVE)
@pytest.mark.parametrize("cancel", WAYS)
async def test_what_was_sent_is_recorded_whatever_cancels_its_caller(tmp_path, cancel):
    sent = []

    async def send_at_once(route, content):
        sent.append(content)
        return f"external {content}"

    async with Trunkline(f"sqlite:///{tmp_path / 'bot.db'}", fsm=None, signal=None) as line:
        arrival = await line.ingest(**hello())
        for turns in range(12):
            await deliver_and_cancel(line, arrival, cancel, turns, send_at_once)
            stored = await line.persistence.get_messages(arrival.room.id)
            recorded = {answer.content for answer in stored if answer.status == "sent"}
            assert recorded == set(sent)
        for answer in stored[1:]:
            assert answer.external_id == f"external {answer.content}"
    assert len(sent) == 12


@pytest.mark.parametrize("anyio_backend", NATIVE)
@pytest.mark.parametrize("cancel", WAYS)
async def test_what_is_cancelled_while_it_is_sent_is_stored_as_failed(tmp_path, cancel):
    async def send_for_ever(route, content):
        await anyio.sleep_forever()

    async with Trunkline(f"sqlite:///{tmp_path / 'bot.db'}", fsm=None, signal=None) as line:
        arrival = await line.ingest(**hello())
        for turns in range(4):
            await deliver_and_cancel(line, arrival, cancel, turns, send_for_ever)
        stored = await line.persistence.get_messages(arrival.room.id)
    assert [answer.status for answer in stored[1:]] == ["failed"] * 4


async def test_what_is_cancelled_while_it_is_stored_is_never_left_as_sending(tmp_path):
    async with Trunkline(f"sqlite:///{tmp_path / 'bot.db'}", fsm=None, signal=None) as line:
        arrival = await line.ingest(**hello())
        for turns in range(12):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(line.deliver, arrival, "hi", send)
                for _ in range(turns):
                    await checkpoint()
                task_group.cancel_scope.cancel()
            stored = await line.persistence.get_messages(arrival.room.id)
            assert {answer.status for answer in stored[1:]} <= {"sent", "failed"}


async def test_what_was_sent_is_recorded_if_the_program_around_the_line_is_cancelled(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"

    async def program(turns):
        async with (
            Trunkline(url, fsm=None, signal=None) as line,
            anyio.create_task_group() as tasks,
        ):
            arrival = await line.ingest(**hello())
            sending = anyio.Event()

            async def send_at_once(route, content):
                sending.set()
                return f"external {turns}"

            tasks.start_soon(line.deliver, arrival, "hi", send_at_once)
            await sending.wait()
            for _ in range(turns):
                await checkpoint()
            outer.cancel()

    for turns in range(8):
        with anyio.CancelScope() as outer:
            await program(turns)
    async with Trunkline(url, fsm=None, signal=None) as line:
        arrival = await line.ingest(**hello())
        answers = (await line.persistence.get_messages(arrival.room.id))[1:]
    assert [answer.external_id for answer in answers] == [f"external {n}" for n in range(8)]


@pytest.mark.parametrize("anyio_backend", NATIVE)
async def test_a_cancelled_caller_hears_of_an_answer_that_was_not_recorded(breakable):
    line, adapter = breakable
    arrival = await line.ingest(**hello())

    async def send_and_lose(route, content):
        adapter.is_away = True
        asyncio.current_task().cancel()
        return "out"

    with pytest.raises(NotRecorded) as caught:
        await asyncio.ensure_future(line.deliver(arrival, "hi", send_and_lose))
    assert caught.value.answer.external_id == "out"


async def test_an_answer_that_goes_out_after_its_line_has_closed_is_not_recorded():
    sending, closed = anyio.Event(), anyio.Event()
    caught = []

    async def send_late(route, content):
        sending.set()
        await closed.wait()
        return "out"

    async def deliver(line, arrival):
        with pytest.raises(NotRecorded, match="has closed") as error:
            await line.deliver(arrival, "hi", send_late)
        caught.append(error.value.answer.external_id)

    async with anyio.create_task_group() as task_group:
        async with Trunkline("memory://", stop_timeout_ms=1) as line:
            task_group.start_soon(deliver, line, await line.ingest(**hello()))
            await sending.wait()
        closed.set()
    assert caught == ["out"]


@pytest.fixture
async def breakable():
    """A line whose database becomes unavailable on request."""

    class Breakable(MemoryPersistenceAdapter):
        is_away = False

        def save_message(self, message):
            if self.is_away:
                raise StoreUnavailable("the database is away")
            return super().save_message(message)

    adapter = Breakable()
    async with Trunkline("memory://", persistence=adapter) as line:
        yield line, adapter


async def test_an_answer_that_was_sent_and_not_recorded_is_distinguished_from_one_that_was_not_sent(
    breakable,
):
    line, adapter = breakable
    arrival = await line.ingest(**hello())

    async def send_and_lose(route, content):
        adapter.is_away = True
        return await send(route, content)

    with pytest.raises(NotRecorded, match="was sent") as caught:
        await line.deliver(arrival, "hi", send_and_lose)
    answer = caught.value.answer
    assert (answer.status, answer.external_id) == ("sent", "sent to 42")
    with pytest.raises(StoreUnavailable):
        await line.deliver(arrival, "hi", lambda *_: pytest.fail("it was sent"))

    adapter.is_away = False
    assert (await line.persistence.get_message(answer.id)).status == "sending"
    await line.persistence.save_message(answer)
    assert (await line.persistence.get_message(answer.id)).status == "sent"


@pytest.mark.parametrize("external_id", [7.5, "nul \0", object()])
async def test_an_id_of_the_platform_that_cannot_be_stored_hides_no_answer(line, external_id):
    arrival = await line.ingest(**hello())

    async def send_oddly(route, content):
        return external_id

    with pytest.raises(NotRecorded) as caught:
        await line.deliver(arrival, "hi", send_oddly)
    assert caught.value.answer.content == "hi"
    assert isinstance(caught.value.__cause__, InvalidModel)


async def test_an_answer_into_a_room_that_was_deleted_meanwhile_is_reported(line):
    arrival = await line.ingest(**hello())

    async def send_and_delete(route, content):
        await line.persistence.delete_room(arrival.room.id)

    with pytest.raises(NotRecorded):
        await line.deliver(arrival, "hi", send_and_delete)


async def test_what_send_raised_is_raised_also_if_the_database_is_away(breakable):
    line, adapter = breakable
    arrival = await line.ingest(**hello())

    async def fail(route, content):
        adapter.is_away = True
        raise ConnectionError("the platform is away")

    with pytest.raises(ConnectionError, match="platform"):
        await line.deliver(arrival, "hi", fail)


# -- opening and closing ---------------------------------------------------------------------------


async def test_a_restart_finds_what_was_said(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    async with Trunkline(url) as line:
        before = await line.ingest(**hello())
        await line.fsm.init("bot")
        await line.fsm.set_state("bot", (42, 7), "get_name")
        await line.signal.set({"session": {"alice": b"1"}})
    async with Trunkline(url) as line:
        again = await line.ingest(**hello())
        assert again.duplicate
        assert again.message == before.message
        await line.fsm.init("bot")
        assert (await line.fsm.get_state("bot", (42, 7))).state == "get_name"
        assert await line.signal.get("session", ["alice"]) == {"alice": b"1"}


async def test_closing_waits_for_an_answer_that_is_being_sent():
    arrival = None
    sent = []

    async def slow(route, content):
        for _ in range(50):
            await checkpoint()
        sent.append(content)

    async with anyio.create_task_group() as task_group:
        async with Trunkline("memory://") as line:
            arrival = await line.ingest(**hello())
            task_group.start_soon(line.deliver, arrival, "hi", slow)
            await checkpoint()
            await checkpoint()
        assert sent == ["hi"]


async def test_a_line_that_is_closing_takes_no_more():
    async with anyio.create_task_group() as task_group:
        async with Trunkline("memory://") as line:
            arrival = await line.ingest(**hello())
            refused = []

            async def send_late(route, content):
                while line.is_running:
                    await checkpoint()
                try:
                    await line.ingest(**hello(external_message_id=2))
                except StoreUnavailable as error:
                    refused.append(str(error))

            task_group.start_soon(line.deliver, arrival, "hi", send_late)
            await checkpoint()
            await checkpoint()
        assert refused == ["trunkline is closing and takes no more messages"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_start_and_stop_work_across_tasks():
    line = Trunkline("memory://")
    await asyncio.create_task(line.start())
    await line.ingest(**hello())
    await asyncio.create_task(line.stop())
    with pytest.raises(StoreUnavailable):
        await line.ingest(**hello(external_message_id=2))


async def test_a_part_that_was_left_out_says_so():
    async with Trunkline("memory://", fsm=None, signal=None) as line:
        with pytest.raises(ConfigurationError, match="fsm=None"):
            _ = line.fsm
        assert line.stats().fsm is None


async def test_a_part_may_have_a_url_or_an_adapter_of_its_own(tmp_path):
    fsm = MemoryFSMAdapter()
    async with Trunkline(
        f"sqlite:///{tmp_path / 'bot.db'}",
        persistence=MemoryPersistenceAdapter(),
        fsm=fsm,
        signal=f"sqlite:///{tmp_path / 'keys.db'}",
        inbox=MemoryInboxAdapter(),
    ) as line:
        await line.ingest(**hello())
        await line.signal.set({"session": {"alice": b"1"}})
    assert sorted(os.listdir(tmp_path)) == ["keys.db"]


async def test_an_inbox_is_at_the_url_of_its_line_in_its_namespace(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    async with Trunkline(url, name="shop") as line:
        assert line.inbox.name == "shop.inbox"
        receipt = await line.accept(**hello())
    async with Inbox(url, namespace="shop") as inbox, Inbox(url) as other:
        assert [item.id for item in await inbox.list("waiting")] == [receipt.item_id]
        assert await other.list("waiting") == []


async def test_an_inbox_may_be_one_of_the_program_at_another_url_or_left_out(tmp_path):
    inbox = Inbox("memory://", name="mine")
    async with Trunkline("memory://", inbox=inbox) as line:
        assert line.inbox is inbox
        await line.accept(**hello())
        assert (await inbox.counts()).waiting == 1
    async with Trunkline("memory://", inbox=f"sqlite:///{tmp_path / 'inbox.db'}") as line:
        await line.accept(**hello())
    assert os.listdir(tmp_path) == ["inbox.db"]
    async with Trunkline("memory://", inbox=None) as line:
        with pytest.raises(ConfigurationError, match="inbox=None"):
            await line.accept(**hello())
        with pytest.raises(ConfigurationError, match="inbox=None"):
            line.turns(lambda turn: None)


async def test_a_part_may_be_a_store_that_the_program_made(tmp_path):
    persistence = PersistenceStore(f"sqlite:///{tmp_path / 'bot.db'}", max_batch=8, name="mine")
    async with Trunkline("memory://", persistence=persistence, fsm=FSMStore("memory://")) as line:
        assert line.persistence is persistence
        arrival = await line.ingest(**hello())
        assert await persistence.get_message(arrival.message.id) == arrival.message
    with pytest.raises(StoreUnavailable, match="mine"):
        await persistence.get_message(arrival.message.id)


@pytest.mark.parametrize("part", [FSMStore("memory://"), MemoryFSMAdapter(), 7, b"memory://"])
def test_a_part_of_another_kind_is_refused(part):
    with pytest.raises(ConfigurationError):
        Trunkline("memory://", persistence=part)


async def test_a_line_keeps_its_data_in_a_file_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with Trunkline() as line:
        first = await line.ingest(**hello())
    assert (tmp_path / "trunkline.db").exists()
    async with Trunkline() as line:
        assert (await line.ingest(**hello())).message == first.message


async def test_stats_tell_of_every_part(line):
    await line.ingest(**hello())
    stats = line.stats()
    assert stats.router.total.sets == 1
    assert stats.persistence.calls == 1
    assert (stats.fsm.calls, stats.signal.calls) == (0, 0)
    before = stats.inbox.calls
    await line.accept(**hello(external_message_id=2))
    assert line.stats().inbox.calls == before + 1


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [("partition_cout", "partition_count"), ("persistance", "persistence"), ("tll_ms", "ttl_ms")],
)
def test_an_unknown_setting_suggests_the_nearest_name(setting, nearest):
    with pytest.raises(ConfigurationError, match=f"{setting!r}: did you mean {nearest!r}"):
        Trunkline(**{setting: 1})
    with pytest.raises(ConfigurationError, match=f"did you mean {nearest!r}"):
        Trunkline.from_settings({setting: 1})


def test_a_setting_that_resembles_nothing_lists_what_is_known():
    with pytest.raises(ConfigurationError, match="known are url, persistence"):
        Trunkline(zzz=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("ttl_ms", "soon"), ("partition_count", 0), ("stop_timeout_ms", 1.5), ("namespace", "")],
)
def test_a_setting_that_cannot_work_is_refused_by_name(setting, value):
    with pytest.raises(ConfigurationError, match=setting):
        Trunkline("memory://", **{setting: value})


def test_every_setting_of_the_router_is_one_of_the_line():
    settings = set(inspect.signature(SessionRouter).parameters) - {"name"}
    assert settings == RouterSettings.__annotations__.keys()


def test_settings_come_from_the_environment():
    line = Trunkline.from_environment(
        environment={
            "TRUNKLINE_URL": "memory://",
            "TRUNKLINE_TTL_MS": "60_000",
            "TRUNKLINE_PARTITION_COUNT": "3",
            "TRUNKLINE_SIGNAL": "",
            "TRUNKLINE_INBOX": "",
            "HOME": "/",
        }
    )
    assert (line.router.config.ttl_ms, line.router.partition_count) == (60_000, 3)
    assert line.stats().signal is None
    assert line.stats().inbox is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TRUNKLINE_TTL_MS", "soon"), ("TRUNKLINE_TTL", "5"), ("TRUNKLINE_PARTITION_COUNT", "0")],
)
def test_a_wrong_variable_is_refused_by_name(variable, value):
    name = variable.removeprefix("TRUNKLINE_").lower()
    with pytest.raises(ConfigurationError, match=name):
        Trunkline.from_environment(environment={variable: value})


def test_a_url_of_an_unknown_scheme_is_refused_without_its_password():
    with pytest.raises(ConfigurationError) as refused:
        Trunkline("mysql://user:secret@host/db")
    assert "secret" not in str(refused.value)
