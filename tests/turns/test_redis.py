"""The inbox on a real Valkey: what is particular to it."""

from __future__ import annotations

import anyio
import pytest

from trunkline import Inbox, TurnPolicy, Turns
from trunkline.backends import AdapterOptions, ConnectionLost
from trunkline.contracts.inbox.samples import KEY, ONE, new_item, open_box
from trunkline.errors import (
    ConfigurationError,
    InboxFull,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from trunkline.turns import InboxCounts
from trunkline.turns.adapter import SHARDS, InboxAdapter, Owner
from trunkline.turns.redis import RedisInboxAdapter
from trunkline.turns.session import Claimant

SESSION = ("telegram", "bot", "42")


@pytest.fixture
def anyio_backend():
    """Its adapter works in threads, whatever the event loop is."""
    return "asyncio"


@pytest.fixture
def adapter(valkey_url):
    return RedisInboxAdapter(valkey_url)


@pytest.fixture
def other(valkey_url):
    """Another process."""
    other = RedisInboxAdapter(valkey_url)
    other.open()
    yield other
    other.close()


@pytest.fixture
def configure(valkey_server):
    """Change settings of the server, for this test."""
    before = {}

    def change(name, value):
        (value_before,) = valkey_server.execute("CONFIG", "GET", name).values()
        before.setdefault(name, value_before)
        valkey_server.execute("CONFIG", "SET", name, value)

    yield change
    for name, value in before.items():
        valkey_server.execute("CONFIG", "SET", name, value)


def accept(adapter, text, key=KEY, claimant=None, **options):
    return adapter.perform(InboxAdapter.accept, key, new_item(text, **options), claimant)


def finish(adapter, begun, claimant=None):
    items = [row.id for row in begun.items]
    return adapter.perform(InboxAdapter.finish, begun.session, begun.id, (), items, False, claimant)


def meanwhile(monkeypatch, adapter, function):
    """Run `function` between the next `load` of an adapter and its `apply`."""
    load = adapter.load

    def load_and_more(keys, marks):
        loaded = load(keys, marks)
        monkeypatch.setattr(adapter, "load", load)
        function()
        return loaded

    monkeypatch.setattr(adapter, "load", load_and_more)


# -- the server --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_keys_is_refused(adapter, configure, policy):
    configure("maxmemory-policy", policy)
    adapter.open()  # its memory has no limit
    configure("maxmemory", "1gb")
    with pytest.raises(ConfigurationError, match=f"maxmemory-policy {policy}.*noeviction"):
        adapter.open()


@pytest.fixture
def limited(valkey_server, valkey_url):
    """The URL of a user who may not read the settings of the server."""
    rules = ("on", ">secret", "~*", "&*", "+@all", "-config")
    valkey_server.execute("ACL", "SETUSER", "limited", *rules)
    yield valkey_url.replace("//", "//limited:secret@")
    valkey_server.execute("ACL", "DELUSER", "limited")


def test_a_server_that_evicts_keys_is_refused_where_its_settings_are_secret(limited, configure):
    adapter = RedisInboxAdapter(limited)
    adapter.open()
    configure("maxmemory-policy", "allkeys-lru")
    configure("maxmemory", "1gb")
    with pytest.raises(ConfigurationError, match="noeviction"):
        adapter.open()


def warnings(log):
    return [entry for entry in log if entry["log_level"] == "warning"]


def test_a_server_that_forgets_when_it_is_killed_is_warned_of(adapter, log):
    adapter.open()
    (warning,) = warnings(log)
    assert (warning["event"], warning["appendonly"]) == ("inbox_may_be_lost", "no")


def test_a_server_that_forgets_nothing_is_not_warned_of(mortal_valkey, log):
    RedisInboxAdapter(mortal_valkey.url).open()
    assert not warnings(log)


def test_a_server_that_is_full_refuses_items_and_lets_turns_end(adapter, configure):
    adapter.open()
    accept(adapter, "kept")
    begun = accept(adapter, "x", "telegram:bot:7", Claimant(ONE)).begun
    accept(adapter, "y", "telegram:bot:7")
    configure("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="memory"):
        accept(adapter, "refused")
    (begun,) = finish(adapter, begun, Claimant(ONE)).begun
    assert [row.payload for row in begun.items] == [b"y"]
    finish(adapter, begun)
    assert adapter.counts() == InboxCounts(sessions=1, waiting=1)


def test_a_session_that_cannot_be_read_does_not_affect_others(adapter, valkey_server):
    adapter.open()
    valkey_server.execute("SET", adapter.session_key("telegram:bot:7"), "a string")
    for _ in range(2):
        with pytest.raises(StoreError, match="WRONGTYPE"):
            accept(adapter, "x", "telegram:bot:7")
    assert accept(adapter, "x").outcome == "accepted"


async def test_calls_of_others_in_the_same_batch_are_served(adapter, valkey_server):
    foreign = adapter.session_key("telegram:bot:7")
    async with open_box(adapter) as box:
        valkey_server.execute("SET", foreign, "a string")
        results = await box.together(
            (InboxAdapter.accept, KEY, new_item("x"), None),
            (InboxAdapter.accept, "telegram:bot:7", new_item("y"), None),
            (InboxAdapter.accept, KEY, new_item("z"), None),
        )
        assert [results[0].waiting, results[2].waiting] == [1, 2]
        assert isinstance(results[1], StoreError)


async def test_the_server_may_forget_its_scripts(valkey_url, valkey_server):
    handled = []

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)

    async with Inbox(valkey_url) as inbox, Turns(inbox, answer) as turns:
        for number in range(3):
            await inbox.accept(SESSION, number)
            await turns.idle()
            valkey_server.execute("SCRIPT", "FLUSH", "SYNC")
    assert handled == [0, 1, 2]


# -- two processes at once ---------------------------------------------------------------------


def test_a_session_that_somebody_else_has_changed_is_loaded_again(adapter, other, monkeypatch):
    adapter.open()
    accept(adapter, "one")
    meanwhile(monkeypatch, adapter, lambda: accept(other, "two"))
    assert accept(adapter, "three").waiting == 3
    begun = accept(adapter, "four", claimant=Claimant(ONE)).begun
    assert [row.payload for row in begun.items] == [b"one", b"two", b"three", b"four"]


def test_an_item_that_two_processes_accept_at_once_is_stored_once(adapter, other, monkeypatch):
    adapter.open()
    accepted = []
    meanwhile(monkeypatch, adapter, lambda: accepted.append(accept(other, "x", external_id="1")))
    again = accept(adapter, "x", external_id="1")
    assert (again.outcome, again.item_id) == ("duplicate", accepted[0].item_id)
    assert adapter.counts().waiting == 1


def test_a_session_that_ended_and_began_anew_is_another(adapter, other, monkeypatch):
    """It has as many changes as the one that was loaded, and the same key."""
    adapter.open()
    begun = accept(adapter, "one", claimant=Claimant(ONE)).begun

    def handle_another():
        finish(other, begun)
        accept(other, "two", claimant=Claimant("two"))

    meanwhile(monkeypatch, adapter, handle_another)
    assert accept(adapter, "three").waiting == 1
    assert adapter.counts() == InboxCounts(sessions=1, waiting=1, running=1)
    assert list(adapter.beat("two").claims.values()) == [(KEY, True)]


def test_two_processes_retry_a_failed_item_once(adapter, other, monkeypatch):
    adapter.open()
    begun = accept(adapter, "x", claimant=Claimant(ONE)).begun
    adapter.perform(InboxAdapter.fail, KEY, begun.id, (), "no", True, 1.0, None)
    (row,) = adapter.rows(None, 10, failed=True)
    meanwhile(monkeypatch, adapter, lambda: other.retry(row.id))
    with pytest.raises(NotFound, match="failed"):
        adapter.retry(row.id)
    assert adapter.counts() == InboxCounts(sessions=1, waiting=1)


def test_a_session_that_was_full_is_looked_at_again(adapter, other):
    """An adapter remembers what it has written, and others may have changed that."""
    adapter.open()
    adapter.policy = TurnPolicy(max_waiting=1)
    accept(adapter, "one")
    (begun,) = other.perform(InboxAdapter.claim, Claimant("two"), 1).begun
    assert accept(adapter, "two").outcome == "accepted"
    with pytest.raises(InboxFull):
        accept(adapter, "three")
    finish(other, begun, Claimant("two"))
    assert accept(adapter, "three").outcome == "accepted"


def test_a_duplicate_is_known_where_its_session_was_not_read(adapter, other):
    adapter.open()
    accept(adapter, "one")
    first = accept(other, "two", external_id="1")
    again = accept(adapter, "two", external_id="1")
    assert (again.outcome, again.item_id, again.waiting) == ("duplicate", first.item_id, 2)


def test_a_session_that_is_written_again_is_not_read(adapter, monkeypatch):
    adapter.open()
    begun = accept(adapter, "one", claimant=Claimant(ONE)).begun
    trips = []
    call_all = adapter.server.call_all
    monkeypatch.setattr(
        adapter.server, "call_all", lambda calls: trips.append(len(calls)) or call_all(calls)
    )
    accept(adapter, "two")
    (begun,) = finish(adapter, begun, Claimant(ONE)).begun
    finish(adapter, begun)
    accept(adapter, "three")
    # The last one brings a notice as well.
    assert trips == [1, 1, 1, 2]


# -- replies that are lost ---------------------------------------------------------------------


def lose_a_reply(monkeypatch, adapter):
    """The connection is cut after the next write, before its reply."""
    call_all = adapter.server.call_all

    def call_and_lose(calls):
        replies = call_all(calls)
        if any(call.__class__.__name__ == "ScriptCall" for call in calls):
            monkeypatch.setattr(adapter.server, "call_all", call_all)
            raise ConnectionLost("the connection was cut")
        return replies

    monkeypatch.setattr(adapter.server, "call_all", call_and_lose)


async def test_an_accept_whose_reply_is_lost_stores_one_item(adapter, monkeypatch):
    async with Inbox(adapter=adapter) as inbox:
        lose_a_reply(monkeypatch, adapter)
        receipt = await inbox.accept(SESSION, "hi")
        assert (receipt.outcome, receipt.waiting) == ("accepted", 1)
        assert (await inbox.counts()).waiting == 1


async def test_a_turn_whose_end_loses_its_reply_has_finished(adapter, monkeypatch):
    handled, events = [], []

    async def answer(turn):
        handled.extend(item.payload for item in turn.items)
        lose_a_reply(monkeypatch, adapter)

    async with Inbox(adapter=adapter) as inbox, Turns(inbox, answer) as turns:
        turns.events.subscribe(lambda event: events.append(event.name))
        await inbox.accept(SESSION, "hi")
        await turns.idle()
    assert handled == ["hi"]
    assert events == ["accepted", "started", "finished"]


# -- notices -----------------------------------------------------------------------------------


def test_notices_of_others_wake_and_own_ones_do_not(adapter, other):
    adapter.open()
    listener = adapter.sibling()
    assert listener.wait(5_000)  # what came before it listened was missed
    accept(adapter, "of this process")
    assert not listener.wait(50)
    accept(other, "one")
    accept(other, "two")
    assert listener.wait(5_000)
    assert not listener.wait(50)
    listener.close()


def test_a_listener_that_lost_its_connection_looks_again(adapter, valkey_server):
    adapter.open()
    listener = adapter.sibling()
    assert listener.wait(5_000)
    valkey_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
    with pytest.raises(StoreUnavailable):
        listener.wait(5_000)
    assert listener.wait(5_000)
    listener.close()


# -- what is stored ----------------------------------------------------------------------------


def keys(valkey_server):
    return sorted(key.decode("latin-1") for key in valkey_server.execute("KEYS", "*"))


def test_all_keys_of_a_session_are_in_its_shard(adapter, valkey_server):
    adapter.open()
    begun = accept(adapter, "x", external_id="1", claimant=Claimant(ONE)).begun
    adapter.perform(InboxAdapter.step, KEY, begun.id, (), "greet", b"hi")
    tags = {key[key.index("{") : key.index("}") + 1] for key in keys(valkey_server)}
    (tag,) = tags
    assert tag.startswith("{default:")


def test_sessions_are_spread_over_all_shards(adapter, valkey_server):
    adapter.open()
    for number in range(10 * SHARDS):
        accept(adapter, "x", f"telegram:bot:{number}")
    assert len({key.partition("}")[0] for key in keys(valkey_server)}) == SHARDS
    found, _ = adapter.due(256, urgent_only=False)
    assert len(set(found)) == 256
    assert adapter.counts().sessions == 10 * SHARDS
    assert len(adapter.rows(None, 1_000, failed=False)) == 10 * SHARDS


def test_sessions_that_have_waited_longest_come_first_from_whatever_shard(adapter, monkeypatch):
    adapter.open()
    crowded = [f"telegram:bot:{number}" for number in range(3_000)]
    shard = adapter.key_at(crowded[0], "")
    crowded = [key for key in crowded if adapter.key_at(key, "") == shard][:20]
    now = adapter.now_ms()
    for number, key in enumerate([*crowded, KEY]):
        monkeypatch.setattr(adapter, "now_ms", lambda number=number: now - 100 + number)
        accept(adapter, "x", key)
    monkeypatch.undo()
    assert adapter.due(20, urgent_only=False) == (crowded, 0)
    assert adapter.due(21, urgent_only=False) == ([*crowded, KEY], None)


async def test_what_is_handled_leaves_nothing_but_its_mark(valkey_url, valkey_server):
    async def answer(turn):
        await turn.step("greet", anyio.sleep, 0)

    async with Inbox(valkey_url) as inbox, Turns(inbox, answer, TurnPolicy()) as turns:
        for number in range(20):
            await inbox.accept(("telegram", "bot", str(number % 7)), "hi", external_id=number)
        await turns.idle()
    left = [key for key in keys(valkey_server) if ":inbox:m:" not in key]
    assert left == ["trunkline:{default}:inbox:policy"]
    marks = valkey_server.execute("KEYS", "*:m:*")
    assert len(marks) == 20
    assert 0 < valkey_server.execute("PTTL", marks[0]) <= 86_400_000


def test_a_process_that_was_found_dead_is_forgotten_after_an_hour(adapter, valkey_server):
    adapter.open()
    for name in ("one", "two"):
        adapter.register(Owner(name, 0, 10_000, ""))
    adapter.mark_buried("one")
    graves = adapter.owner_keys[2]
    long_ago = int(valkey_server.execute("HGET", graves, "one")) - 3_600_001
    valkey_server.execute("HSET", graves, "one", long_ago)
    adapter.mark_buried("two")
    assert [owner.id for owner in adapter.beat("three").owners] == ["two"]


def test_namespaces_share_nothing(valkey_url):
    one, two = (
        RedisInboxAdapter.from_url(valkey_url, AdapterOptions(namespace=name))
        for name in ("a", "a:07 {☃}")
    )
    one.open()
    two.open()
    accept(one, "x")
    assert two.counts() == InboxCounts()
    accept(two, "x")
    assert one.namespaces() == ["a", "a:07 {☃}"]
    assert one.counts() == InboxCounts(sessions=1, waiting=1)
