"""What every signal adapter must do, as a pytest class."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import permutations
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import TaskStatus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.errors import ConfigurationError, TransactionConflict
from trunkline.signal import FAMILIES, SignalAdapter, SignalStore, SignalTransaction

__all__ = ("SignalContract",)

Handle: TypeAlias = SignalStore | SignalTransaction
#: What `set` takes.
Changes: TypeAlias = Mapping[str, Mapping[str, Any]]

#: One value of each kind that Baileys and its ports keep.
KINDS: dict[str, tuple[str, Any]] = {
    "bytes": ("session", b"\x00ratchet\xff"),
    "no bytes": ("session", b""),
    "a list of strings": ("device-list", ["0", "2", "17"]),
    "an empty list": ("device-list", []),
    "a map of booleans": ("sender-key-memory", {"ann@lid": True, "bob@lid": False}),
    "a token with its time": ("tctoken", {"token": b"\x01\x02", "timestamp": "1763000000"}),
    "a key pair": ("pre-key", {"public": b"\x05" * 33, "private": b"\x06" * 32}),
    "a string": ("lid-mapping", "ann@lid"),
    "a map of maps": ("app-state-sync-version", {"version": 3, "index": {"a": {"mac": b"\x07"}}}),
    "bytes that look like text": ("identity-key", b"text"),
    "a number": ("app-state-sync-key", 2**63),
    "false": ("sender-key", False),
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
#: Whatever msgpack holds.
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values) | st.dictionaries(st.text(max_size=5), values),
    max_leaves=12,
).filter(lambda value: value is not None)
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda text: len(text.encode()) <= 1_000
)


async def _write(tx: Handle) -> None:
    await tx.set({"session": {"ann": b"mine"}})


async def _read(tx: Handle) -> None:
    await tx.get("session", ["ann"])
    await tx.set({"pre-key": {"1": b"mine"}})


async def _read_absent(tx: Handle) -> None:
    await tx.get("session", ["new"])
    await tx.set({"pre-key": {"1": b"mine"}})


async def _delete(tx: Handle) -> None:
    await tx.set({"session": {"ann": None}})


async def _create(tx: Handle) -> None:
    await tx.set({"session": {"new": b"mine"}})


async def _clear(tx: Handle) -> None:
    await tx.clear()


async def _clear_and_write(tx: Handle) -> None:
    await tx.clear()
    await tx.set({"pre-key": {"1": b"mine"}})


#: What a transaction does, and what another one that commits before it changes; `None` clears.
CONFLICTS: dict[str, tuple[Callable[[Handle], Awaitable[None]], Changes | None]] = {
    "read-write": (_read, {"session": {"ann": b"theirs"}}),
    "read-delete": (_read, {"session": {"ann": None}}),
    "read-create": (_read_absent, {"session": {"new": b"theirs"}}),
    "read-clear": (_read, None),
    "write-write": (_write, {"session": {"ann": b"theirs"}}),
    "write-the-same": (_write, {"session": {"ann": b"first"}}),
    "write-delete": (_write, {"session": {"ann": None}}),
    "write-clear": (_write, None),
    "delete-write": (_delete, {"session": {"ann": b"theirs"}}),
    "delete-delete": (_delete, {"session": {"ann": None}}),
    "create-create": (_create, {"session": {"new": b"theirs"}}),
    "clear-write": (_clear, {"session": {"ann": b"theirs"}}),
    "clear-create": (_clear_and_write, {"identity-key": {"new": b"theirs"}}),
    "clear-delete": (_clear_and_write, {"session": {"bob": None}}),
}


class SignalContract:
    """Subclass it, give it one fixture `adapter`, and pytest tests an adapter of yours.

    The fixture returns a new adapter on an empty database, not yet open. The tests are async, and
    run by the pytest plugin of anyio, on asyncio and on trio if both are installed.

    Example::

        class TestMyAdapter(SignalContract):
            @pytest.fixture
            def adapter(self, tmp_path):
                return MyAdapter(tmp_path / "signal.db")
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> SignalAdapter:
        raise NotImplementedError("a subclass of SignalContract has a fixture 'adapter'")

    # -- get and set -----------------------------------------------------------------------------

    async def test_a_new_store_holds_nothing(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            for family in FAMILIES:
                assert await store.get(family, ["ann", "1"]) == {}

    async def test_get_leaves_absent_ids_out(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})
            found = await store.get("session", ["bob", "nobody", "ann"])
        assert list(found.items()) == [("bob", b"2"), ("ann", b"1")]

    async def test_an_id_may_be_asked_for_twice(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            assert await store.get("session", ["ann", "x", "ann", "x"]) == {"ann": b"1"}

    async def test_no_ids_give_nothing(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            assert await store.get("session", []) == {}
            assert await store.get("session", iter(())) == {}

    async def test_ids_of_two_families_are_different_entries(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"1": b"session"}, "pre-key": {"1": b"pre-key"}})
            await store.set({"session": {"1": None}})
            assert await store.get("session", ["1"]) == {}
            assert await store.get("pre-key", ["1"]) == {"1": b"pre-key"}

    async def test_ids_that_look_alike_are_different_entries(self, adapter: SignalAdapter) -> None:
        alike = ["a", "A", "a ", " a", "a:b", "a%", "a_", "a*", "a\n", "ä", "a\u0308", "1", "01"]
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {name: name for name in alike}})
            assert await store.get("session", alike) == {name: name for name in alike}

    async def test_a_value_is_replaced(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            await store.set({"session": {"ann": ["another", "type"]}})
            assert await store.get("session", ["ann"]) == {"ann": ["another", "type"]}

    async def test_none_deletes(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})
            await store.set({"session": {"ann": None, "nobody": None}})
            assert await store.get("session", ["ann", "bob", "nobody"]) == {"bob": b"2"}

    async def test_nothing_may_be_set(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            await store.set({})
            await store.set({"session": {}})
            assert await store.get("session", ["ann"]) == {"ann": b"1"}

    async def test_clear_deletes_everything(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter, families=["notes"]) as store:
            await store.clear()
            await store.set({family: {"ann": b"1"} for family in [*FAMILIES, "notes"]})
            await store.clear()
            for family in [*FAMILIES, "notes"]:
                assert await store.get(family, ["ann"]) == {}
            await store.set({"session": {"ann": b"2"}})
            assert await store.get("session", ["ann"]) == {"ann": b"2"}

    async def test_a_thousand_entries_are_set_and_read_at_once(
        self, adapter: SignalAdapter
    ) -> None:
        entries = {str(number): {"private": b"%d" % number} for number in range(1_000)}
        async with SignalStore(adapter=adapter) as store:
            await store.set({"pre-key": entries})
            assert await store.get("pre-key", [*entries, "1000"]) == entries

    async def test_what_was_stored_is_there_after_opening_again(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
        async with SignalStore(adapter=adapter) as store:
            assert await store.get("session", ["ann"]) == {"ann": b"1"}

    async def test_names_are_those_of_every_entry(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter, families=["notes"]) as store:
            await store.set({"session": {"bob": b"1", "ann": b"2"}, "notes": {"ä": b"3"}})
            await store.set({"session": {"bob": None}, "pre-key": {"1": b"4"}})
        adapter.open()
        try:
            with adapter.transaction(read_only=True):
                assert adapter.names() == [("notes", "ä"), ("pre-key", "1"), ("session", "ann")]
        finally:
            adapter.close()

    async def test_whoever_reads_while_others_write_sees_all_of_a_set_or_nothing(
        self, adapter: SignalAdapter
    ) -> None:
        ids = [str(number) for number in range(700)]

        async def write() -> None:
            for number in range(5):
                await store.set({"session": dict.fromkeys(ids, number)})
            written.set()

        async with SignalStore(adapter=adapter) as store:
            written = anyio.Event()
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(write)
                while not written.is_set():
                    found = await store.get("session", ids)
                    assert len(found) in (0, len(ids))
                    assert len(set(found.values())) <= 1

    # -- values ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_value_comes_back_with_its_types(
        self, adapter: SignalAdapter, kind: str
    ) -> None:
        family, value = KINDS[kind]
        async with SignalStore(adapter=adapter) as store:
            await store.set({family: {"ann": value}})
            found = (await store.get(family, ["ann"]))["ann"]
            assert _same(found, value)

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )
    @given(entries=st.dictionaries(IDS, VALUES, min_size=1, max_size=12))
    async def test_whatever_msgpack_holds_comes_back_as_it_went_in(
        self, adapter: SignalAdapter, entries: dict[str, Any]
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": entries})
            found = await store.get("session", entries)
            assert list(found) == list(entries)
            for name, value in entries.items():
                assert _same(found[name], value)

    async def test_a_value_of_a_million_bytes_is_stored(self, adapter: SignalAdapter) -> None:
        large = bytes(range(256)) * 4_096
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": large}})
            assert await store.get("session", ["ann"]) == {"ann": large}

    async def test_changing_a_value_that_was_returned_changes_nothing_stored(
        self, adapter: SignalAdapter
    ) -> None:
        value = {"list": ["1"]}
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": value}})
            value["list"].append("2")
            (await store.get("session", ["ann"]))["ann"]["list"].append("3")
            assert await store.get("session", ["ann"]) == {"ann": {"list": ["1"]}}
            async with store.transaction("ann") as tx:
                (await tx.get("session", ["ann"]))["ann"]["list"].append("4")
                assert await tx.get("session", ["ann"]) == {"ann": {"list": ["1"]}}

    @pytest.mark.parametrize(
        "value",
        [object(), {"deep": [object()]}, {("a", 1): 1}, "\ud800", bytearray(b"x")],
        ids=["an object", "an object inside", "a map by tuples", "no Unicode", "a bytearray"],
    )
    async def test_a_value_that_cannot_be_stored_is_refused_before_anything_changes(
        self, adapter: SignalAdapter, value: object
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"first"}})
            changes: Changes = {
                "session": {"ann": b"second", "bob": value},
                "pre-key": {"1": b"third"},
            }
            with pytest.raises(ConfigurationError, match="session 'bob' cannot be stored"):
                await store.set(changes)
            async with store.transaction("ann") as tx:
                with pytest.raises(ConfigurationError, match="session 'bob' cannot be stored"):
                    await tx.set(changes)
                assert await tx.get("session", ["ann", "bob"]) == {"ann": b"first"}
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"first"}
            assert await store.get("pre-key", ["1"]) == {}

    # -- names -----------------------------------------------------------------------------------

    async def test_all_ten_families_are_known(self, adapter: SignalAdapter) -> None:
        assert len(FAMILIES) == 10
        async with SignalStore(adapter=adapter) as store:
            await store.set({family: {"ann": family} for family in FAMILIES})
            for family in FAMILIES:
                assert await store.get(family, ["ann"]) == {"ann": family}

    async def test_an_unknown_family_is_refused_before_anything_changes(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="unknown family 'sessions'"):
                await store.get("sessions", [])
            with pytest.raises(ConfigurationError, match="unknown family 'sessions'"):
                await store.set({"session": {"ann": b"1"}, "sessions": {}})
            async with store.transaction("ann") as tx:
                with pytest.raises(ConfigurationError, match="unknown family 'sessions'"):
                    await tx.get("sessions", ["ann"])
            assert await store.get("session", ["ann"]) == {}

    @pytest.mark.parametrize("family", ["notes", "families", "lock", "lock:transaction:ann", "*"])
    async def test_another_family_may_be_registered(
        self, adapter: SignalAdapter, family: str
    ) -> None:
        async with SignalStore(adapter=adapter, families=[family]) as store:
            async with store.transaction("ann") as tx:
                await tx.set({family: {"ann": b"1"}, "session": {"ann": b"2"}})
            assert await store.get(family, ["ann"]) == {"ann": b"1"}
            assert await store.get("session", ["ann"]) == {"ann": b"2"}

    @pytest.mark.parametrize(
        "wrong",
        ["", 7, None, b"ann", "nul\0", "\ud800", "x" * 1_001],
        ids=["empty", "an int", "None", "bytes", "a NUL", "no Unicode", "too long"],
    )
    async def test_an_id_that_cannot_be_stored_is_refused_before_anything_changes(
        self, adapter: SignalAdapter, wrong: Any
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="an id of session"):
                await store.get("session", ["ann", wrong])
            with pytest.raises(ConfigurationError, match="an id of session"):
                await store.set({"session": {"ann": b"1", wrong: b"2"}})
            assert await store.get("session", ["ann"]) == {}

    async def test_an_id_of_a_thousand_bytes_is_stored(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ä" * 500: b"1"}})
            assert await store.get("session", ["ä" * 500]) == {"ä" * 500: b"1"}

    # -- transactions ----------------------------------------------------------------------------

    async def test_a_transaction_reads_what_it_wrote_and_not_what_it_deleted(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"mine", "bob": None, "new": b"3"}})
                found = await tx.get("session", ["ann", "bob", "new"])
                assert found == {"ann": b"mine", "new": b"3"}
                await tx.set({"session": {"bob": b"again", "new": None}})
                found = await tx.get("session", ["ann", "bob", "new"])
                assert found == {"ann": b"mine", "bob": b"again"}
            found = await store.get("session", ["ann", "bob", "new"])
            assert found == {"ann": b"mine", "bob": b"again"}

    async def test_what_a_transaction_has_read_does_not_change_under_it(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            async with store.transaction("ann") as tx:
                assert await tx.get("session", ["ann", "new"]) == {"ann": b"1"}
                await store.set({"session": {"ann": b"2", "new": b"3"}})
                assert await tx.get("session", ["ann", "new"]) == {"ann": b"1"}

    async def test_nothing_is_visible_outside_before_the_commit(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:
            await store.set({"session": {"ann": b"1", "bob": b"2"}})

            async def look() -> dict[str, Any]:
                async with store.transaction("another") as theirs:
                    found = await theirs.get("session", ["ann", "bob", "new"])
                assert found == await store.get("session", ["ann", "bob", "new"])
                return found

            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"mine", "bob": None, "new": b"3"}})
                assert await run(look) == {"ann": b"1", "bob": b"2"}
                assert await store.get("session", ["ann"]) == {"ann": b"1"}
                await tx.clear()
                assert await run(look) == {"ann": b"1", "bob": b"2"}
            assert await run(look) == {}

    async def test_a_transaction_is_stored_wholly(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
                await tx.set({"session": {"bob": b"2"}, "identity-key": {"ann": b"3"}})
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}
            assert await store.get("identity-key", ["ann"]) == {"ann": b"3"}

    async def test_an_exception_rolls_back(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            with _rolled_back():
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"2", "bob": b"3"}})
                    raise _RollBack
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1"}
            async with store.transaction("ann") as tx:
                assert await tx.get("session", ["ann", "bob"]) == {"ann": b"1"}

    async def test_a_cancellation_rolls_back(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            with anyio.CancelScope() as scope:
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"2", "bob": b"3"}})
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1"}

    async def test_clear_is_part_of_a_transaction(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"2"}, "pre-key": {"1": b"3"}})
            with _rolled_back():
                async with store.transaction("ann") as tx:
                    await tx.clear()
                    raise _RollBack
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}
            async with store.transaction("ann") as tx:
                await tx.get("session", ["ann"])
                await tx.set({"session": {"before": b"4"}})
                await tx.clear()
                assert await tx.get("session", ["ann", "bob", "before"]) == {}
                await tx.set({"session": {"bob": b"5", "after": b"6"}})
                await tx.clear()
                await tx.set({"session": {"after": b"7", "ann": None}})
                assert await tx.get("session", ["bob", "after"]) == {"after": b"7"}
            found = await store.get("session", ["ann", "bob", "before", "after"])
            assert found == {"after": b"7"}
            assert await store.get("pre-key", ["1"]) == {}

    async def test_a_transaction_that_is_over_takes_no_more(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
            for use in (
                tx.get("session", ["ann"]),
                tx.set({"session": {"ann": b"2"}}),
                tx.clear(),
                tx.transact("ann", _write),
                tx.transaction("ann").__aenter__(),
            ):
                with pytest.raises(RuntimeError, match="the transaction on 'ann' is over"):
                    await use
            assert not tx.in_transaction
            assert await store.get("session", ["ann"]) == {"ann": b"1"}

    @pytest.mark.parametrize(
        "wrong",
        ["", 7, None, b"ann", "nul\0"],
        ids=["empty", "an int", "None", "bytes", "a NUL"],
    )
    async def test_the_key_of_a_transaction_is_a_string(
        self, adapter: SignalAdapter, wrong: Any
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="the key of a transaction"):
                store.transaction(wrong)
            with pytest.raises(ConfigurationError, match="the key of a transaction"):
                await store.transact(wrong, _write)
            async with store.transaction("ann") as tx:
                with pytest.raises(ConfigurationError, match="the key of a transaction"):
                    tx.transaction(wrong)

    # -- nested transactions ---------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["ann", "another"])
    async def test_a_nested_transaction_joins_the_outer_whatever_its_key(
        self, adapter: SignalAdapter, key: str
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                await outer.set({"session": {"ann": b"1"}})
                async with store.transaction(key) as inner:
                    assert inner is outer
                    assert await inner.get("session", ["ann"]) == {"ann": b"1"}
                    await inner.set({"session": {"bob": b"2"}})
                    async with inner.transaction(key) as innermost:
                        assert innermost is outer
                assert await outer.get("session", ["bob"]) == {"bob": b"2"}
                assert await store.get("session", ["ann", "bob"]) == {}
                assert store.in_transaction
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    async def test_an_exception_in_the_outer_rolls_the_nested_one_back(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with _rolled_back():
                async with store.transaction("ann"):
                    async with store.transaction("bob") as inner:
                        await inner.set({"session": {"bob": b"2"}})
                    raise _RollBack
            assert await store.get("session", ["bob"]) == {}

    async def test_an_exception_that_leaves_only_the_nested_one_undoes_nothing(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                with _rolled_back():
                    async with store.transaction("bob") as inner:
                        await inner.set({"session": {"bob": b"2"}})
                        raise _RollBack
                assert outer.in_transaction
                await outer.set({"session": {"ann": b"1"}})
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    async def test_tasks_of_a_transaction_share_it(self, adapter: SignalAdapter) -> None:
        async def add(number: int) -> None:
            async with store.transaction(f"key {number}") as tx:
                await tx.set({"session": {str(number): number}})

        async with SignalStore(adapter=adapter) as store:
            async with store.transaction("ann") as outer:
                async with anyio.create_task_group() as task_group:
                    for number in range(20):
                        task_group.start_soon(add, number)
                ids = [str(number) for number in range(20)]
                assert len(await outer.get("session", ids)) == 20
                assert await store.get("session", ids) == {}
            assert len(await store.get("session", ids)) == 20

    # -- in_transaction and wrap_running ---------------------------------------------------------

    async def test_in_transaction_is_true_in_its_task_and_in_tasks_started_there(
        self, adapter: SignalAdapter
    ) -> None:
        async def look() -> bool:
            return store.in_transaction

        async def look_later(
            results: list[bool], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
        ) -> None:
            results.append(store.in_transaction)
            task_status.started()
            await over.wait()
            results.append(store.in_transaction)
            async with store.transaction("later") as tx:
                await tx.set({"session": {"later": b"1"}})

        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:
            over = anyio.Event()
            child: list[bool] = []
            assert not store.in_transaction
            async with anyio.create_task_group() as task_group:
                async with store.transaction("ann") as tx:
                    assert store.in_transaction
                    assert tx.in_transaction
                    assert not await run(look)
                    await task_group.start(look_later, child)
                assert not store.in_transaction
                over.set()
            assert child == [True, False]
            assert await store.get("session", ["later"]) == {"later": b"1"}
            with _rolled_back():
                async with store.transaction("ann"):
                    raise _RollBack
            assert not store.in_transaction

    async def test_wrap_running_takes_a_store_or_a_transaction(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            assert SignalStore.wrap_running(None) is None
            assert store.wrap_running(store) is store
            async with store.transaction("ann") as tx:
                assert SignalStore.wrap_running(tx) is tx
            with pytest.raises(ConfigurationError, match="object is no running signal store"):
                SignalStore.wrap_running(object())  # type: ignore[arg-type]

    @pytest.mark.parametrize("inside", [False, True], ids=["a store", "a transaction"])
    async def test_code_that_takes_a_store_or_a_transaction_runs_on_both(
        self, adapter: SignalAdapter, inside: bool
    ) -> None:
        async def use(handle: Handle) -> bytes:
            await handle.set({"session": {"ann": b"1"}})
            async with handle.transaction("ann") as tx:
                await tx.set({"session": {"bob": b"2"}})
            return await handle.transact("ann", _remember, retries=3)

        async with SignalStore(adapter=adapter) as store:
            if inside:
                async with store.transaction("outer") as tx:
                    assert await use(tx) == b"1"
            else:
                assert await use(store) == b"1"
            found = await store.get("session", ["ann", "bob", "memory"])
            assert found == {"ann": b"1", "bob": b"2", "memory": b"1"}

    # -- one key ---------------------------------------------------------------------------------

    async def test_transactions_on_one_key_run_one_after_another_in_order_of_arrival(
        self, adapter: SignalAdapter
    ) -> None:
        async def increment(number: int, *, task_status: TaskStatus[None]) -> None:
            task_status.started()
            async with store.transaction("ann") as tx:
                order.append(number)
                await _increment(tx)

        order: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group, _held(store, "ann"):
                for number in range(64):
                    await task_group.start(increment, number)
                assert order == []
            assert order == list(range(64))
            assert await store.get("session", ["count"]) == {"count": 64}

    async def test_transactions_on_different_keys_run_at_once(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:

            async def theirs() -> None:
                async with store.transaction("bob") as tx:
                    await tx.set({"session": {"bob": b"2"}})

            async with store.transaction("ann") as tx:
                await tx.set({"session": {"ann": b"1"}})
                await run(theirs)
                assert await store.get("session", ["ann", "bob"]) == {"bob": b"2"}
            assert await store.get("session", ["ann", "bob"]) == {"ann": b"1", "bob": b"2"}

    @pytest.mark.parametrize("end", ["cancelled", "raised"])
    async def test_the_lock_of_an_owner_that_is_gone_is_free_at_once(
        self, adapter: SignalAdapter, end: str
    ) -> None:
        async def own(*, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                try:
                    async with store.transaction("ann") as tx:
                        await tx.set({"session": {"ann": b"theirs"}})
                        task_status.started(scope)
                        await let_go.wait()
                        raise _RollBack
                except _RollBack:
                    pass

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            let_go = anyio.Event()
            scope = await task_group.start(own)
            if end == "cancelled":
                scope.cancel()
            else:
                let_go.set()
            with anyio.fail_after(5):
                async with store.transaction("ann") as tx:
                    assert await tx.get("session", ["ann"]) == {}
                    await tx.set({"session": {"ann": b"mine"}})
            assert await store.get("session", ["ann"]) == {"ann": b"mine"}

    async def test_a_cancelled_waiter_does_not_break_the_line(self, adapter: SignalAdapter) -> None:
        async def wait_in_line(number: int, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                task_status.started(scope)
                async with store.transaction("ann"):
                    order.append(number)

        order: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group, _held(store, "ann"):
                scopes = [await task_group.start(wait_in_line, number) for number in range(6)]
                for number in (0, 2, 3):
                    scopes[number].cancel()
            assert order == [1, 4, 5]

    async def test_a_waiter_that_is_cancelled_when_its_turn_has_come_hands_it_on(
        self, adapter: SignalAdapter
    ) -> None:
        async def own(*, task_status: TaskStatus[None]) -> None:
            async with store.transaction("ann"):
                task_status.started()
                await let_go.wait()
            scope.cancel()

        async def wait_in_line(*, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as mine:
                task_status.started(mine)
                async with store.transaction("ann"):
                    pass

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            let_go = anyio.Event()
            await task_group.start(own)
            scope = await task_group.start(wait_in_line)
            let_go.set()
            with anyio.fail_after(5):
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"1"}})
            assert await store.get("session", ["ann"]) == {"ann": b"1"}

    # -- conflicts -------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_the_second_to_commit_gets_a_conflict_and_nothing_of_it_is_stored(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]

        async def theirs() -> None:
            async with store.transaction("theirs") as tx:
                await _apply(tx, change)

        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            with _conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    await run(theirs)
                    stored = await _everything(store)
            assert await _everything(store) == stored
            assert not store.in_transaction

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_the_first_to_commit_may_have_begun_before(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]

        async def theirs(*, task_status: TaskStatus[None]) -> None:
            async with store.transaction("theirs") as tx:
                await _apply(tx, change)
                task_status.started()
                await commit.wait()
            committed.set()

        async with SignalStore(adapter=adapter) as store, anyio.create_task_group() as task_group:
            commit, committed = anyio.Event(), anyio.Event()
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            await task_group.start(theirs)
            with _conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    commit.set()
                    await committed.wait()
                    stored = await _everything(store)
            assert await _everything(store) == stored

    @pytest.mark.parametrize("case", CONFLICTS)
    async def test_a_change_without_a_transaction_is_a_conflict_as_well(
        self, adapter: SignalAdapter, case: str
    ) -> None:
        mine, change = CONFLICTS[case]
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})
            with _conflict():
                async with store.transaction("mine") as tx:
                    await mine(tx)
                    await _apply(store, change)
                    stored = await _everything(store)
            assert await _everything(store) == stored

    async def test_transactions_that_touch_different_ids_do_not_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:
            await store.set({"session": {"ann": b"first", "bob": b"first"}})

            async def theirs() -> None:
                async with store.transaction("theirs") as tx:
                    assert await tx.get("session", ["bob"]) == {"bob": b"first"}
                    await tx.set({"session": {"bob": b"theirs"}, "pre-key": {"ann": b"theirs"}})

            async with store.transaction("mine") as tx:
                assert await tx.get("session", ["ann"]) == {"ann": b"first"}
                await tx.set({"session": {"ann": b"mine"}})
                await run(theirs)
            found = await store.get("session", ["ann", "bob"])
            assert found == {"ann": b"mine", "bob": b"theirs"}

    async def test_transactions_that_only_read_the_same_ids_do_not_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store, _elsewhere() as run:
            await store.set({"session": {"ann": b"first"}})

            async def theirs() -> None:
                async with store.transaction("theirs") as tx:
                    await tx.get("session", ["ann", "new"])
                    await tx.set({"pre-key": {"1": b"theirs"}})

            async with store.transaction("mine") as tx:
                await tx.get("session", ["ann", "new"])
                await tx.set({"pre-key": {"2": b"mine"}})
                await run(theirs)
            assert len(await store.get("pre-key", ["1", "2"])) == 2

    async def test_a_transaction_that_read_what_was_never_true_together_gets_a_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1", "bob": b"1"}})
            with _conflict():
                async with store.transaction("mine") as tx:
                    first = await tx.get("session", ["ann"])
                    await store.set({"session": {"ann": b"2", "bob": b"2"}})
                    second = await tx.get("session", ["bob"])
            assert (first, second) == ({"ann": b"1"}, {"bob": b"2"})

    async def test_a_hundred_interleavings_end_as_if_one_had_run_after_another(
        self, adapter: SignalAdapter
    ) -> None:
        committed = conflicts = 0
        async with SignalStore(adapter=adapter) as store:
            for seed in range(100):
                await store.clear()
                await store.set(INITIAL)
                players = await _interleave(store, random.Random(seed))
                stood = [player for player in players if player.committed]
                final = await _state(store)
                assert any(_one_after_another(order) == final for order in permutations(stood)), (
                    f"seed {seed}: no order of {stood} gives {final}"
                )
                committed += len(stood)
                conflicts += len(players) - len(stood)
        # Interleavings of which nobody ever conflicts, or nobody ever commits, show nothing.
        assert committed > 100
        assert conflicts > 30

    # -- transact --------------------------------------------------------------------------------

    async def test_transact_returns_what_its_function_returned(
        self, adapter: SignalAdapter
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": b"1"}})
            assert await store.transact("ann", _remember) == b"1"
            assert await store.get("session", ["memory"]) == {"memory": b"1"}

    async def test_transact_runs_its_function_again_after_a_conflict(
        self, adapter: SignalAdapter
    ) -> None:
        async def increment(tx: SignalTransaction) -> int:
            count: int = (await tx.get("session", ["count"])).get("count", 0)
            seen.append(count)
            if len(seen) < 3:
                await store.set({"session": {"count": 10 * len(seen)}})
            await tx.set({"session": {"count": count + 1}})
            return count + 1

        seen: list[int] = []
        async with SignalStore(adapter=adapter) as store:
            assert await store.transact("ann", increment) == 21
            assert seen == [0, 10, 20]
            assert await store.get("session", ["count"]) == {"count": 21}

    @pytest.mark.parametrize("retries", [0, 1, 4])
    async def test_transact_gives_up_after_its_retries(
        self, adapter: SignalAdapter, retries: int
    ) -> None:
        runs = 0

        async def lose(tx: SignalTransaction) -> None:
            nonlocal runs
            runs += 1
            await tx.set({"session": {"ann": b"mine"}})
            await store.set({"session": {"ann": runs}})

        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(TransactionConflict):
                await store.transact("ann", lose, retries=retries)
            assert runs == retries + 1
            assert await store.get("session", ["ann"]) == {"ann": retries + 1}

    async def test_transact_does_not_run_a_function_again_that_raised(
        self, adapter: SignalAdapter
    ) -> None:
        runs = 0

        async def fail(tx: SignalTransaction) -> None:
            nonlocal runs
            runs += 1
            await tx.set({"session": {"ann": b"1"}})
            raise _RollBack

        async with SignalStore(adapter=adapter) as store:
            with _rolled_back():
                await store.transact("ann", fail)
            assert runs == 1
            assert await store.get("session", ["ann"]) == {}

    async def test_a_conflict_of_a_nested_transact_is_for_the_outer_to_deal_with(
        self, adapter: SignalAdapter
    ) -> None:
        runs = {"inner": 0, "outer": 0}

        async def inner(tx: SignalTransaction) -> None:
            runs["inner"] += 1
            await tx.set({"session": {"bob": b"inner"}})
            if runs["inner"] == 1:
                raise TransactionConflict("of another store, for instance")

        async def outer(tx: SignalTransaction) -> None:
            runs["outer"] += 1
            await tx.set({"session": {"ann": runs["outer"]}})
            await store.transact("another", inner)

        async with SignalStore(adapter=adapter) as store:
            await store.transact("ann", outer)
            assert runs == {"inner": 2, "outer": 2}
            assert await store.get("session", ["ann", "bob"]) == {"ann": 2, "bob": b"inner"}

    @pytest.mark.parametrize("retries", [-1, 1.5, "3", True, None], ids=repr)
    async def test_retries_are_an_int_of_0_or_more(
        self, adapter: SignalAdapter, retries: Any
    ) -> None:
        async with SignalStore(adapter=adapter) as store:
            with pytest.raises(ConfigurationError, match="retries"):
                await store.transact("ann", _write, retries=retries)

    async def test_a_counter_loses_nothing_under_thirty_two_keys(
        self, adapter: SignalAdapter
    ) -> None:
        async def work(number: int) -> None:
            for _ in range(3):
                await store.transact(f"key {number}", _increment, retries=200)

        async with SignalStore(adapter=adapter) as store:
            async with anyio.create_task_group() as task_group:
                for number in range(32):
                    task_group.start_soon(work, number)
            assert await store.get("session", ["count"]) == {"count": 96}

    # -- secrets ---------------------------------------------------------------------------------

    async def test_values_stay_out_of_reprs_and_errors(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            shown = [repr(store), str(store)]
            with _conflict() as conflict:
                async with store.transaction("ann") as tx:
                    await tx.set({"session": {"ann": b"SECRET", "bob": "SECRET"}})
                    shown += [repr(tx), str(tx)]
                    await store.set({"session": {"ann": "SECRET"}})
            shown.append(repr(tx))
            for value in (object, {"SECRET": object()}, ["SECRET", {"SECRET": {"SECRET"}}, object]):
                with pytest.raises(ConfigurationError) as refused:
                    await store.set({"session": {"ann": value}})
                shown += [str(refused.value), repr(refused.value)]
            shown += [str(conflict.value), repr(conflict.value)]
        assert not [text for text in shown if "SECRET" in text]

    async def test_encrypted_values_are_read_with_their_keys_only(
        self, adapter: SignalAdapter
    ) -> None:
        fernet = pytest.importorskip("cryptography.fernet").Fernet
        old, new = fernet.generate_key(), fernet.generate_key().decode()
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"plain": b"SECRET plain"}})
        async with SignalStore(adapter=adapter, encryption_key=old) as store:
            assert await store.get("session", ["plain"]) == {"plain": b"SECRET plain"}
            async with store.transaction("ann") as tx:
                await tx.set({"session": {"old": {"key": b"SECRET old"}}})
                assert await tx.get("session", ["old"]) == {"old": {"key": b"SECRET old"}}
        for wrong in (new, None):
            async with SignalStore(adapter=adapter, encryption_key=wrong) as store:
                with pytest.raises(ConfigurationError, match=r"session 'old'.*encrypt") as failure:
                    await store.get("session", ["plain", "old"])
                assert "SECRET" not in str(failure.value)
                assert await store.get("session", ["plain"]) == {"plain": b"SECRET plain"}
        async with SignalStore(adapter=adapter, encryption_key=[new, old]) as store:
            found = await store.get("session", ["old"])
            assert found == {"old": {"key": b"SECRET old"}}
            await store.set({"session": found})
        async with SignalStore(adapter=adapter, encryption_key=new) as store:
            assert await store.get("session", ["old"]) == {"old": {"key": b"SECRET old"}}
        adapter.open()
        try:
            with adapter.transaction(read_only=True):
                stored = adapter.get(adapter.names())
        finally:
            adapter.close()
        assert sorted(b"SECRET" in entry.value for entry in stored.values()) == [False, True]


# -- what the tests are made of --------------------------------------------------------------------


class _RollBack(Exception):
    """What a transaction of these tests ends with if it is to be rolled back."""


@contextmanager
def _rolled_back() -> Iterator[None]:
    with pytest.raises(_RollBack):
        yield


@contextmanager
def _conflict() -> Iterator[pytest.ExceptionInfo[TransactionConflict]]:
    with pytest.raises(TransactionConflict, match="nothing was stored") as conflict:
        yield conflict


@asynccontextmanager
async def _elsewhere() -> AsyncIterator[Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]]:
    """What runs functions in a task that is started here, outside of transactions begun later."""
    send, receive = anyio.create_memory_object_stream[tuple[Callable[[], Any], anyio.Event]]()
    results: list[Any] = []

    async def serve() -> None:
        async with receive:
            async for function, done in receive:
                results.append(await function())
                done.set()

    async def run(function: Callable[[], Awaitable[Any]]) -> Any:
        done = anyio.Event()
        await send.send((function, done))
        await done.wait()
        return results.pop()

    async with anyio.create_task_group() as task_group, send:
        task_group.start_soon(serve)
        yield run


@asynccontextmanager
async def _held(store: SignalStore, key: str) -> AsyncIterator[None]:
    """The lock of `key` is held inside, by a transaction of another task."""

    async def hold(*, task_status: TaskStatus[None]) -> None:
        async with store.transaction(key):
            task_status.started()
            await let_go.wait()

    let_go = anyio.Event()
    async with anyio.create_task_group() as task_group:
        await task_group.start(hold)
        try:
            yield
        finally:
            let_go.set()


async def _remember(tx: SignalTransaction) -> bytes:
    value: bytes = (await tx.get("session", ["ann"]))["ann"]
    await tx.set({"session": {"memory": value}})
    return value


async def _increment(tx: SignalTransaction) -> int:
    count: int = (await tx.get("session", ["count"])).get("count", 0) + 1
    await tx.set({"session": {"count": count}})
    return count


async def _apply(handle: Handle, change: Changes | None) -> None:
    await (handle.clear() if change is None else handle.set(change))


async def _everything(store: SignalStore) -> dict[str, dict[str, Any]]:
    """All that the tests of conflicts ever store."""
    ids = ["ann", "bob", "new", "1", "2"]
    return {
        family: await store.get(family, ids) for family in ("session", "pre-key", "identity-key")
    }


def _same(found: object, value: object) -> bool:
    """Whether both are equal type by type, and in the order of their maps; NaN equals itself."""
    return repr(found) == repr(value)


# -- interleavings ---------------------------------------------------------------------------------

State: TypeAlias = dict[tuple[str, str], str]

INITIAL = {"session": {"ann": "initial", "bob": "initial"}, "pre-key": {"1": "initial"}}
_NAMES = [("session", "ann"), ("session", "bob"), ("pre-key", "1"), ("pre-key", "2")]


class _Step:
    """One thing that a transaction does, and what it saw if it read."""

    def __init__(self, kind: str, name: tuple[str, str], value: str) -> None:
        self.kind = kind
        self.name = name
        self.value = value
        self.found: str | None = None

    def __repr__(self) -> str:
        return f"{self.kind} {self.name} {self.found if self.kind == 'read' else self.value}"

    async def run(self, handle: Handle) -> None:
        family, entry_id = self.name
        if self.kind == "read":
            self.found = (await handle.get(family, [entry_id])).get(entry_id)
        elif self.kind == "clear":
            await handle.clear()
        else:
            value = self.value if self.kind == "write" else None
            await handle.set({family: {entry_id: value}})

    def replay(self, state: State) -> bool:
        """Do it to `state`; whether a read finds what it found."""
        if self.kind == "read":
            return state.get(self.name) == self.found
        if self.kind == "clear":
            state.clear()
        elif self.kind == "write":
            state[self.name] = self.value
        else:
            state.pop(self.name, None)
        return True


class _Player:
    """A transaction of one interleaving, or a plain `set` if it has one step and is `plain`."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.key = f"key {number}"
        self.plain = chance.random() < 0.15
        kinds = ["write"] if self.plain else chance.choices(_KINDS, k=chance.randint(2, 5))
        self.steps = [
            _Step(kind, chance.choice(_NAMES), f"{number}.{index}")
            for index, kind in enumerate(kinds)
        ]
        self.committed = False
        self.send, self._turns = anyio.create_memory_object_stream[anyio.Event]()

    def __repr__(self) -> str:
        return f"<{self.key}: {self.steps}>"

    @property
    def turns(self) -> int:
        return 1 if self.plain else len(self.steps) + 2

    async def play(self, store: SignalStore) -> None:
        async with self._turns:
            done = await self._turns.receive()
            if self.plain:
                await self.steps[0].run(store)
                self.committed = True
                done.set()
                return
            try:
                async with store.transaction(self.key) as tx:
                    for step in self.steps:
                        done.set()
                        done = await self._turns.receive()
                        await step.run(tx)
                    done.set()
                    done = await self._turns.receive()
                self.committed = True
            except TransactionConflict:
                pass
            done.set()


_KINDS = [*["read"] * 10, *["write"] * 7, *["delete"] * 2, "clear"]


async def _interleave(store: SignalStore, chance: random.Random) -> list[_Player]:
    """Run a few random transactions, one step at a time, in a random order."""
    players = [_Player(number, chance) for number in range(chance.randint(2, 4))]
    order = [player for player in players for _ in range(player.turns)]
    chance.shuffle(order)
    async with anyio.create_task_group() as task_group:
        for player in players:
            task_group.start_soon(player.play, store)
        for player in order:
            done = anyio.Event()
            await player.send.send(done)
            await done.wait()
    for player in players:
        player.send.close()
    return players


def _one_after_another(players: Sequence[_Player]) -> State | None:
    """What is stored after these transactions ran in this order; `None` if one saw otherwise."""
    state = {
        (family, id_): value for family, values in INITIAL.items() for id_, value in values.items()
    }
    if all(step.replay(state) for player in players for step in player.steps):
        return state
    return None


async def _state(store: SignalStore) -> State:
    found = await _everything(store)
    return {
        (family, id_): value for family, values in found.items() for id_, value in values.items()
    }
