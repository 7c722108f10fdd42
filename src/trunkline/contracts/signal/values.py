"""Values: stored with their types, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.contracts.signal.samples import Changes, same
from trunkline.errors import ConfigurationError, UnreadableRecord
from trunkline.signal import SignalAdapter, SignalStore
from trunkline.signal.adapter import Commit, KeyName

__all__ = ("ValueTests",)

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


#: What no store has written, as an adapter keeps it.
DAMAGED = {
    "nothing": b"",
    "of an unknown kind": b"\x07SECRET",
    "cut off": b"\x00\xa9SECRET",
    "no msgpack": b"\x00\xc1SECRET",
    "too long": b"\x00\xa6SECRETSECRET",
    "an unknown extension": b"\x00\xc7\x06\x7fSECRET",
    "no token": b"\x01SECRET\xff",
}


class ValueTests:
    """A part of `SignalContract`."""

    @pytest.mark.parametrize("damage", DAMAGED)
    async def test_a_damaged_value_fails_its_call_and_no_other(
        self, adapter: SignalAdapter, damage: str
    ) -> None:
        key = b"m1Qn1NwPvcA9WPXcWsPOvT9Qx2bnz2GnzVPW8lSDhAI=" if damage == "no token" else None
        if key is not None:
            pytest.importorskip("cryptography")
        async with SignalStore(adapter=adapter) as store:
            await store.set({"session": {"ann": 1, "bob": 2}})
        adapter.open()
        try:
            with adapter.transaction():
                assert adapter.commit(Commit({KeyName("session", "ann"): DAMAGED[damage]}, 7))
        finally:
            adapter.close()
        async with SignalStore(adapter=adapter, encryption_key=key) as store:
            for _ in range(20):
                with pytest.raises(UnreadableRecord, match="session 'ann'") as failure:
                    await store.get("session", ["bob", "ann"])
                assert "SECRET" not in str(failure.value)
                assert failure.value.__cause__ is None
                assert failure.value.__context__ is None
            assert await store.get("session", ["bob"]) == {"bob": 2}
            async with store.transaction("ann") as tx:
                with pytest.raises(UnreadableRecord, match="session 'ann'"):
                    await tx.get("session", ["ann"])
                await tx.set({"session": {"ann": 3}})
            assert await store.get("session", ["ann"]) == {"ann": 3}
            assert store.stats().restarts == 0

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_value_comes_back_with_its_types(
        self, adapter: SignalAdapter, kind: str
    ) -> None:
        family, value = KINDS[kind]
        async with SignalStore(adapter=adapter) as store:
            await store.set({family: {"ann": value}})
            found = (await store.get(family, ["ann"]))["ann"]
            assert same(found, value)

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
