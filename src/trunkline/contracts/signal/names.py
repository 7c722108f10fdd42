"""Families and ids: which are known, and which can be stored."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.errors import ConfigurationError
from trunkline.signal import FAMILIES, SignalAdapter, SignalStore

__all__ = ("NameTests",)


class NameTests:
    """A part of `SignalContract`."""

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
