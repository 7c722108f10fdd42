"""Turns on a line: what was said, in the order in which it came, and replies that are sent once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.servers.writer import Journal, processes, read_journal
from trunkline import Trunkline, TurnPolicy
from trunkline.errors import ConfigurationError, NoRoute, NotRecorded, StoreUnavailable, TurnLost
from trunkline.persistence.memory import MemoryPersistenceAdapter
from trunkline.testing import crash
from trunkline.turns.memory import MemoryInboxAdapter

ONCE_MORE = TurnPolicy(max_attempts=2, retry_delay_ms=1)


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'bot.db'}"


@pytest.fixture
async def line(url):
    async with Trunkline(url, fsm=None, signal=None) as line:
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


class Platform:
    """Sends to nobody, and remembers what it was asked."""

    def __init__(self):
        self.sent = []
        self.nonces = []

    async def send(self, route, content, *, nonce):
        self.sent.append((route.external_room_id, content))
        self.nonces.append(nonce)
        return len(self.sent)


@pytest.fixture
def platform():
    return Platform()


async def answer_all(line, handler, policy=None, **options):
    async with line.turns(handler, policy, **options) as turns:
        with anyio.fail_after(60):
            await turns.idle()


# -- accept ----------------------------------------------------------------------------------------


async def test_what_was_accepted_is_stored_and_waits(line):
    receipt = await line.accept(**hello())
    assert (receipt.outcome, receipt.waiting) == ("accepted", 1)
    (room,) = await line.persistence.list_rooms()
    (message,) = await line.persistence.get_messages(room.id)
    (item,) = await line.inbox.list("waiting")
    assert item.id == receipt.item_id
    assert item.external_id == "1"
    assert item.payload["arrival"]["message_id"] == message.id
    route = await line.router.resolve(item.session_key)
    assert (route.external_room_id, route.source) == (42, "state_hit")


async def test_what_is_accepted_again_is_neither_stored_nor_handled_twice(line):
    first = await line.accept(**hello())
    again = await line.accept(**hello(external_message_id="1"))
    assert (again.outcome, again.item_id) == ("duplicate", first.item_id)
    assert (await line.persistence.counts())["messages"] == 1
    assert (await line.inbox.counts()).waiting == 1


async def test_a_message_that_was_ingested_and_not_accepted_is_accepted_when_it_comes_again(line):
    arrival = await line.ingest(**hello())  # and then the process died
    receipt = await line.accept(**hello())
    assert receipt.outcome == "accepted"
    seen = []

    async def answer(turn):
        seen.extend(turn.messages)

    await answer_all(line, answer)
    assert seen == [arrival.message]


async def test_messages_of_a_conversation_wait_in_the_order_in_which_they_were_accepted(line):
    async with anyio.create_task_group() as tasks:

        async def accept(number):
            await line.accept(**hello(external_message_id=number, content=str(number)))

        for number in range(40):
            tasks.start_soon(accept, number)
            await checkpoint()
    seen = []

    async def answer(turn):
        seen.extend(message.content for message in turn.messages)

    await answer_all(line, answer)
    assert seen == [str(number) for number in range(40)]
    assert not line._order  # nothing is held


async def test_an_accept_that_is_slow_in_the_first_store_is_not_overtaken():
    order = []
    async with Trunkline("memory://", fsm=None, signal=None) as line:
        save = line.persistence.save_new_inbound
        go_on = anyio.Event()

        async def slow(inbound):
            if inbound.message.content == "first":
                await go_on.wait()
            return await save(inbound)

        line.persistence.save_new_inbound = slow
        async with anyio.create_task_group() as tasks:

            async def accept(number, text):
                await line.accept(**hello(external_message_id=number, content=text))
                order.append(text)

            tasks.start_soon(accept, 1, "first")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(accept, 2, "second")
            await anyio.wait_all_tasks_blocked()
            assert order == []
            # Other conversations do not wait.
            await line.accept(**hello(external_room_id=43))
            go_on.set()
        assert order == ["first", "second"]


async def test_an_accept_that_is_cancelled_holds_up_nobody_and_may_be_repeated(line):
    for number in range(12):
        async with anyio.create_task_group() as tasks:
            arguments = hello(external_message_id=number, content=str(number))
            tasks.start_soon(partial(line.accept, **arguments))
            for _ in range(number):
                await checkpoint()
            tasks.cancel_scope.cancel()
        assert not line._order
        with anyio.fail_after(60):
            await line.accept(**arguments)  # as the platform does
    seen = []

    async def answer(turn):
        seen.extend(message.content for message in turn.messages)

    await answer_all(line, answer)
    assert seen == [str(number) for number in range(12)]


@pytest.mark.parametrize("changes", [{"channel": ""}, {"content": object()}, {"delay_ms": -1}])
async def test_what_cannot_be_stored_leaves_no_order_behind(line, changes):
    with pytest.raises(ValueError, match="|".join(changes)):
        await line.accept(**hello(**changes))
    assert not line._order
    assert (await line.inbox.counts()).waiting == 0


async def test_a_line_that_does_not_run_accepts_nothing():
    with pytest.raises(StoreUnavailable, match="does not run"):
        await Trunkline("memory://").accept(**hello())


async def test_an_edited_message_that_still_waits_is_handled_as_it_is_now(line):
    first = await line.accept(**hello())
    again = await line.accept(**hello(content="hello, world", replace=True))
    assert (again.outcome, again.item_id) == ("accepted", first.item_id)
    seen = []

    async def answer(turn):
        seen.extend(message.content for message in turn.messages)

    await answer_all(line, answer)
    late = await line.accept(**hello(content="too late", replace=True))
    assert late.outcome == "duplicate"
    assert seen == ["hello, world"]


# -- arrivals and messages -------------------------------------------------------------------------


async def test_a_turn_has_the_arrivals_and_messages_of_its_items_in_order(line):
    for number, text in enumerate(("one", "two", "three")):
        await line.accept(**hello(external_message_id=number, content=text, external_thread_id=5))
    turns = []

    async def answer(turn):
        turns.append(turn)

    await answer_all(line, answer)
    (turn,) = turns
    assert [message.content for message in turn.messages] == ["one", "two", "three"]
    again = await line.ingest(**hello(external_message_id=0, external_thread_id=5))
    first = turn.arrivals[0]
    assert first.session_key == again.session_key == turn.session_key
    assert (first.origin, first.message, first.room) == (again.origin, again.message, again.room)
    assert first.participant == again.participant
    assert not first.duplicate


async def test_an_item_of_the_program_is_no_arrival_and_a_deleted_message_is_left_out(line):
    arrival = await line.ingest(**hello())
    await line.accept(**hello())
    await line.inbox.accept(arrival.session_key, {"arrival": "of a parcel"})
    await line.accept(**hello(external_message_id=2, content="still here"))
    await line.persistence.delete_message(arrival.message.id)
    seen = []

    async def answer(turn):
        seen.append((len(turn.items), [message.content for message in turn.messages]))

    await answer_all(line, answer)
    assert seen == [(3, ["still here"])]


async def test_a_line_without_persistence_has_the_whole_messages(platform):
    async with Trunkline("memory://", persistence=None) as line:
        await line.accept(**hello(external_thread_id=5))
        seen = []

        async def answer(turn):
            seen.extend(turn.arrivals)
            sent = await turn.reply("hi")
            seen.append(sent.external_id)

        await answer_all(line, answer, send=platform.send)
    arrival, external_id = seen
    assert (arrival.message.content, arrival.origin.thread_id) == ("hello", "5")
    assert arrival.session_key == ("telegram", "bot", "42", "5")
    assert (platform.sent, external_id) == ([(42, "hi")], 1)


async def test_a_database_that_is_away_when_a_turn_begins_costs_no_attempt():
    class Away(MemoryPersistenceAdapter):
        reads = 0

        def get_message(self, message_id):
            self.reads += 1
            if self.reads == 1:
                raise StoreUnavailable("the database is away")
            return super().get_message(message_id)

    attempts = []

    async def answer(turn):
        attempts.append((turn.attempt, [message.content for message in turn.messages]))

    async with Trunkline("memory://", persistence=Away()) as line:
        await line.accept(**hello())
        await answer_all(line, answer)
    assert attempts == [(1, ["hello"])]


async def test_a_failed_turn_is_reported_with_its_messages(line):
    reported = []

    async def answer(turn):
        raise ValueError("no answer")

    def on_failed(turn, error):
        reported.append(([message.content for message in turn.messages], str(error)))

    await line.accept(**hello())
    await answer_all(line, answer, TurnPolicy(max_attempts=1), on_failed=on_failed)
    assert reported == [(["hello"], "no answer")]


async def test_items_that_join_a_turn_have_messages_too(line):
    texts = []
    begun = anyio.Event()

    async def answer(turn):
        begun.set()
        (item,) = await turn.receive()
        (arrival,) = await turn.arrivals_of([item])
        texts.append(arrival.message.content)

    async with line.turns(answer, TurnPolicy(while_busy="steer")) as turns:
        await line.accept(**hello())
        await begun.wait()
        await line.accept(**hello(external_message_id=2, content="also"))
        with anyio.fail_after(60):
            await turns.idle()
    assert texts == ["also"]


# -- routes ----------------------------------------------------------------------------------------


async def test_a_worker_knows_the_route_of_a_message_that_another_process_accepted(tmp_path):
    url = f"sqlite:///{tmp_path / 'bot.db'}"
    async with Trunkline(url, fsm=None, signal=None) as front:
        await front.accept(**hello(external_thread_id=5))
    routes = []

    async with Trunkline(url, fsm=None, signal=None) as worker:

        async def answer(turn):
            routes.append(await worker.router.resolve(turn.session_key))
            routes.append(await worker.router.resolve(turn.session_key.room_scope))

        await answer_all(worker, answer)
    assert [(one.external_room_id, one.source) for one in routes] == [(42, "state_hit")] * 2
    assert [one.route.thread_id for one in routes] == ["5", None]


async def test_a_route_that_the_program_has_set_meanwhile_stands(line, platform):
    await line.accept(**hello())
    (item,) = await line.inbox.list("waiting")
    await line.router.set(item.session_key, {"external_room_id": 43})

    async def answer(turn):
        await turn.reply("hi")

    await answer_all(line, answer, send=platform.send)
    assert platform.sent == [(43, "hi")]


async def test_a_reply_finds_its_way_while_the_partition_is_down(line, platform):
    async def answer(turn):
        await crash(line.router.partition(turn.session_key))
        await turn.reply("hi")

    await line.accept(**hello())
    await answer_all(line, answer, send=platform.send)
    assert platform.sent == [(42, "hi")]


# -- reply -----------------------------------------------------------------------------------------


async def test_a_reply_is_stored_sent_and_recorded(line, platform):
    said = []

    async def answer(turn):
        said.append(await turn.reply("hi", metadata={"model": "m"}, sender_id="bot"))

    await line.accept(**hello())
    await answer_all(line, answer, send=platform.send)
    (reply,) = said
    message, stored = await line.persistence.get_messages(reply.room_id)
    assert stored == reply
    assert (stored.status, stored.external_id, stored.role) == ("sent", 1, "assistant")
    assert (stored.reply_to_id, stored.sender_id) == (message.id, "bot")
    assert stored.metadata == {"model": "m", "channel": "telegram", "bridge_id": "bot"}
    assert platform.nonces == [reply.id]


async def test_a_send_without_a_nonce_gets_none(line):
    sent = []

    async def send(route, content):
        sent.append(content)

    async def answer(turn):
        await turn.reply("hi", send)

    await line.accept(**hello())
    await answer_all(line, answer)
    assert sent == ["hi"]


async def test_a_reply_that_was_recorded_is_not_sent_again_by_another_attempt(line, platform):
    replies = []

    async def answer(turn):
        replies.append(await turn.reply("one"))
        replies.append(await turn.reply("two"))
        if turn.attempt == 1:
            raise ValueError("after its replies")
        replies.append(await turn.reply("three"))

    await line.accept(**hello())
    await answer_all(line, answer, ONCE_MORE, send=platform.send)
    assert platform.sent == [(42, "one"), (42, "two"), (42, "three")]
    assert [reply.content for reply in replies] == ["one", "two", "one", "two", "three"]
    assert replies[0] == replies[2]
    assert replies[1] == replies[3]


async def test_a_reply_without_send_is_refused(line):
    errors = []

    async def answer(turn):
        with pytest.raises(ConfigurationError, match="send="):
            await turn.reply("hi")
        errors.append(1)

    await line.accept(**hello())
    await answer_all(line, answer)
    assert errors == [1]


async def test_two_replies_at_once_are_refused(line, platform):
    async def answer(turn):
        async def slow(route, content):
            with pytest.raises(RuntimeError, match="runs already"):
                await turn.reply("two")

        await turn.reply("one", slow)

    await line.accept(**hello())
    await answer_all(line, answer, send=platform.send)
    assert platform.sent == []


async def test_a_reminder_replies_to_its_conversation(line, platform):
    arrival = await line.ingest(**hello())
    replies = []

    async def answer(turn):
        assert turn.messages == ()
        replies.append(await turn.reply("you asked me to remind you"))

    await line.inbox.accept(arrival.session_key, "remind", delay_ms=1)
    await answer_all(line, answer, send=platform.send)
    assert platform.sent == [(42, "you asked me to remind you")]
    assert replies[0].room_id == arrival.room.id


async def test_a_reply_to_a_conversation_that_nobody_knows_has_no_route(line, platform):
    async def answer(turn):
        with pytest.raises(NoRoute):
            await turn.reply("hi")

    await line.inbox.accept(("telegram", "bot", "nowhere"), "remind")
    await answer_all(line, answer, TurnPolicy(max_attempts=1), send=platform.send)
    assert platform.sent == []
    assert (await line.inbox.counts()).failed == 0


async def test_a_reply_that_cannot_be_sent_has_failed_and_another_attempt_is_sure_of_that(line):
    attempts = []

    async def answer(turn):
        attempts.append([message.content for message in turn.unsure])

        async def send(route, content):
            if turn.attempt == 1:
                raise ConnectionError("the platform is away")
            return 7

        await turn.reply("hi", send)

    await line.accept(**hello())
    await answer_all(line, answer, ONCE_MORE)
    assert attempts == [[], []]
    (room,) = await line.persistence.list_rooms()
    (_, reply) = await line.persistence.get_messages(room.id)
    assert (reply.status, reply.external_id) == ("sent", 7)


async def test_a_reply_that_was_begun_and_never_recorded_is_sent_again_with_the_same_nonce(line):
    sent, unsure = [], []

    async def answer(turn):
        unsure.append([message.id for message in turn.unsure])

        async def send(route, content, nonce):
            sent.append((content, nonce))
            if turn.attempt == 1:
                turns._runner._failure = RuntimeError("a bug that ends the runner")
                turns._runner._wake.set()
                await anyio.sleep_forever()

        await turn.reply(f"attempt {turn.attempt}", send)

    await line.accept(**hello())
    async with line.turns(answer, stop_timeout_ms=1) as turns:
        with anyio.fail_after(60):
            await turns.idle()
    (first, nonce), again = sent
    assert first == "attempt 1"
    assert again == (first, nonce)
    assert unsure == [[], [nonce]]
    (room,) = await line.persistence.list_rooms()
    (_, reply) = await line.persistence.get_messages(room.id)
    assert (reply.id, reply.content, reply.status) == (nonce, "attempt 1", "sent")


async def test_a_lost_turn_replies_nothing(line, platform):
    raised = []

    async def answer(turn):
        with anyio.CancelScope(shield=True):
            await line.inbox.cancel(turn.session_key)
            with pytest.raises(TurnLost):
                await turn.reply("hi")
        raised.append(1)

    await line.accept(**hello())
    await answer_all(line, answer, send=platform.send)
    assert raised == [1]
    assert platform.sent == []
    (room,) = await line.persistence.list_rooms()
    assert len(await line.persistence.get_messages(room.id)) == 1


async def test_a_turn_that_the_store_gave_to_another_replies_nothing(line, platform):
    raised = []

    async def answer(turn):
        # As a process that slept through it: nothing in this process knows.
        await line.inbox.ask(
            str(turn.session_key), type(line.inbox.adapter).cancel, str(turn.session_key), True
        )
        with pytest.raises(TurnLost):
            await turn.reply("hi")
        raised.append(1)
        raise TurnLost

    await line.accept(**hello())
    await answer_all(line, answer, send=platform.send)
    assert raised == [1]
    assert platform.sent == []


async def test_a_turn_that_was_lost_while_its_reply_was_sent_does_not_record_it(line):
    async def answer(turn):
        async def send(route, content):
            with anyio.CancelScope(shield=True):
                await line.inbox.cancel(turn.session_key)
            return 7

        with anyio.CancelScope(shield=True), pytest.raises(TurnLost):
            await turn.reply("hi", send)

    await line.accept(**hello())
    await answer_all(line, answer)
    (room,) = await line.persistence.list_rooms()
    (_, reply) = await line.persistence.get_messages(room.id)
    assert (reply.status, reply.external_id) == ("sending", None)


async def test_a_reply_that_is_cancelled_while_it_is_sent_is_stored_as_failed(line):
    sending = anyio.Event()

    async def send(route, content):
        sending.set()
        await anyio.sleep_forever()

    async def answer(turn):
        await turn.reply("hi", send)

    await line.accept(**hello())
    async with line.turns(answer) as turns:
        await sending.wait()
        (item,) = await line.inbox.list("running")
        await turns.cancel(item.session_key)
        with anyio.fail_after(60):
            await turns.idle()
    (room,) = await line.persistence.list_rooms()
    (_, reply) = await line.persistence.get_messages(room.id)
    assert reply.status == "failed"


NATIVE = [pytest.param(("asyncio", {"use_uvloop": uvloop}), id=f"{uvloop=}") for uvloop in (0, 1)]


@pytest.mark.parametrize("anyio_backend", NATIVE)
async def test_what_was_sent_is_recorded_however_its_task_is_cancelled(line):
    async def answer(turn):
        for number in range(8):
            sending = anyio.Event()

            async def send(route, content, sending=sending):
                sending.set()
                return f"external {content}"

            task = asyncio.ensure_future(turn.reply(str(number), send))
            await sending.wait()
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    await line.accept(**hello())
    await answer_all(line, answer)
    (room,) = await line.persistence.list_rooms()
    replies = (await line.persistence.get_messages(room.id))[1:]
    assert [(one.status, one.external_id) for one in replies] == [
        ("sent", f"external {number}") for number in range(8)
    ]


@pytest.mark.slow
def test_a_reply_whose_process_is_killed_while_it_is_sent_is_sent_again(tmp_path):
    url, journal = f"sqlite:///{tmp_path / 'bot.db'}", tmp_path / "journal"
    for dies in (True, False):
        process = processes.Process(target=reply_and_die, args=(url, journal, dies))
        process.start()
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if dies else 0)
    (first, nonce, nothing), (again, nonce_again, unsure) = read_journal(journal)
    assert (first, again) == ("attempt 1", "attempt 1")
    assert nonce_again == nonce
    assert (nothing, unsure) == ([], [nonce])


def reply_and_die(url, path, dies):
    """Accept a message, which is there already the second time, and answer it."""

    async def main():
        journal = Journal(path)

        async def answer(turn):
            unsure = [message.id for message in turn.unsure]

            async def send(route, content, nonce):
                journal.write(content, nonce, unsure)
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)

            await turn.reply(f"attempt {turn.attempt}", send)

        async with Trunkline(url, fsm=None, signal=None) as line:
            await line.accept(**hello())
            await answer_all(line, answer)

    anyio.run(main)


@pytest.mark.slow
def test_what_is_said_of_a_failed_turn_is_not_taken_for_a_reply_of_its_handler(tmp_path):
    url, journal = f"sqlite:///{tmp_path / 'bot.db'}", tmp_path / "journal"
    for dies in (True, False):
        process = processes.Process(target=fail_and_die, args=(url, journal, dies))
        process.start()
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if dies else 0)
    # The handler is not called again, and so its reply is not counted.
    assert read_journal(journal) == [["one moment"], ["sorry"]]


def fail_and_die(url, path, dies):
    """Answer a message in a handler that fails, and say so unless the process dies."""

    async def main():
        journal = Journal(path)

        async def send(route, content):
            journal.write(content)

        async def answer(turn):
            await turn.reply("one moment")
            raise ValueError("no answer")

        async def on_failed(turn, error):
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            await turn.reply("sorry")

        policy = TurnPolicy(max_attempts=1)
        async with Trunkline(url, fsm=None, signal=None) as line:
            await line.accept(**hello())
            await answer_all(line, answer, policy, send=send, on_failed=on_failed)

    anyio.run(main)


# -- NotRecorded -----------------------------------------------------------------------------------


class Breakable(MemoryPersistenceAdapter):
    is_away = False

    def save_message(self, message):
        if self.is_away:
            raise StoreUnavailable("the database is away")
        return super().save_message(message)


class BreakableInbox(MemoryInboxAdapter):
    is_away = False

    def step(self, *args):
        if self.is_away:
            raise StoreUnavailable("the inbox is away")
        return super().step(*args)


@pytest.mark.parametrize("broken", ["persistence", "inbox"])
@pytest.mark.parametrize("swallow", [True, False])
async def test_after_not_recorded_the_recording_goes_on_until_it_is_stored(broken, swallow):
    parts = {"persistence": Breakable(), "inbox": BreakableInbox()}
    part: Any = parts[broken]
    sent, raised = [], []

    async def send(route, content):
        sent.append(content)
        part.is_away = True
        return 7

    async def answer(turn):
        try:
            await turn.reply("hi", send)
        except NotRecorded as error:
            raised.append(error.answer.external_id)
            tasks.start_soon(come_back)
            if not swallow:
                raise

    async def come_back():
        await anyio.sleep(0.1)
        part.is_away = False

    async with Trunkline("memory://", **parts) as line, anyio.create_task_group() as tasks:
        await line.accept(**hello())
        await answer_all(line, answer, ONCE_MORE)
        (room,) = await line.persistence.list_rooms()
        (_, reply) = await line.persistence.get_messages(room.id)
    assert (reply.status, reply.external_id) == ("sent", 7)
    assert raised == [7]
    assert sent == ["hi"]  # and not again by the second attempt


async def test_an_id_that_cannot_be_stored_hides_no_reply_and_sends_it_once(line):
    sent, raised = [], []

    async def send(route, content):
        sent.append(content)
        return object()

    async def answer(turn):
        try:
            await turn.reply("hi", send)
        except NotRecorded:
            raised.append(turn.attempt)
            raise

    await line.accept(**hello())
    await answer_all(line, answer, ONCE_MORE)
    assert sent == ["hi"]
    assert raised == [1]
    (room,) = await line.persistence.list_rooms()
    (_, reply) = await line.persistence.get_messages(room.id)
    assert (reply.status, reply.external_id) == ("sent", None)


async def test_replies_are_encrypted_in_the_inbox(tmp_path):
    pytest.importorskip("cryptography")
    from cryptography.fernet import Fernet

    path = tmp_path / "inbox.db"
    line = Trunkline(
        "memory://", inbox=f"sqlite:///{path}", encryption_key=Fernet.generate_key().decode()
    )
    texts = []

    async def answer(turn):
        texts.append(turn.messages[0].content)
        await turn.reply("a secret", lambda *_: checkpoint())
        texts.append(b"a secret" in path.read_bytes())
        texts.append(b"message_id" in path.read_bytes())

    async with line:
        await line.accept(**hello())
        await answer_all(line, answer)
    assert texts == ["hello", False, False]
