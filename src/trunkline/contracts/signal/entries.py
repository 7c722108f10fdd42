"""Entries: set, read, replaced, deleted, cleared."""

from __future__ import annotations

import anyio

from trunkline.signal import FAMILIES, SignalAdapter, SignalStore

__all__ = ("EntryTests",)


class EntryTests:
    """A part of `SignalContract`."""

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
