"""Values: stored with their types, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.contracts.signal.samples import Changes, same
from trunkline.errors import ConfigurationError
from trunkline.signal import SignalAdapter, SignalStore

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


class ValueTests:
    """A part of `SignalContract`."""

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
