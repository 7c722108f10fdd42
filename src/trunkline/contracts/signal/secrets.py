"""Values that stay out of reprs and errors, and are encrypted."""

from __future__ import annotations

import pytest

from trunkline.contracts.signal.samples import raises_conflict
from trunkline.errors import ConfigurationError
from trunkline.signal import SignalAdapter, SignalStore

__all__ = ("SecretTests",)


class SecretTests:
    """A part of `SignalContract`."""

    async def test_values_stay_out_of_reprs_and_errors(self, adapter: SignalAdapter) -> None:
        async with SignalStore(adapter=adapter) as store:
            shown = [repr(store), str(store)]
            with raises_conflict() as conflict:
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
