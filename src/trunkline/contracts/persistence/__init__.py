"""What every persistence adapter must do, as tests that run over any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from trunkline.contracts.persistence.bindings import BindingTests
from trunkline.contracts.persistence.directory import DirectoryTests
from trunkline.contracts.persistence.messages import MessageTests
from trunkline.contracts.persistence.participants import ParticipantTests
from trunkline.contracts.persistence.rooms import RoomTests
from trunkline.contracts.persistence.settings import SettingTests
from trunkline.contracts.persistence.threads import ThreadTests
from trunkline.contracts.persistence.whole import WholeTests
from trunkline.contracts.tables import TableTests
from trunkline.persistence import PersistenceAdapter, PersistenceStore

__all__ = ("PersistenceContract",)


class PersistenceContract(
    RoomTests,
    ParticipantTests,
    MessageTests,
    ThreadTests,
    BindingTests,
    DirectoryTests,
    SettingTests,
    WholeTests,
    TableTests,
):
    """What a `PersistenceAdapter` must do. Subclass it with a fixture `adapter`, and run pytest.

    The fixture returns a new adapter on an empty database, not yet open; the suite opens a
    `PersistenceStore` over it. The tests are async and run by anyio's pytest plugin, on whatever
    event loops your fixture `anyio_backend` names. For failures that show what was compared,
    import the suite from `trunkline.testing`.

    Example:
        >>> import pytest
        >>> from trunkline.testing import PersistenceContract
        >>> from trunkline.persistence.memory import MemoryPersistenceAdapter
        >>> class TestMyAdapter(PersistenceContract):
        ...     @pytest.fixture
        ...     def adapter(self):
        ...         return MemoryPersistenceAdapter()
    """

    sample_rows: ClassVar = {
        "rooms": [("a", "group", "lobby", "{}"), ("ö", "direct", None, '{"id": "\U0001f422"}')],
    }

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> PersistenceAdapter:
        """A new adapter on an empty database."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'adapter'")

    @pytest.fixture
    async def store(self, adapter: PersistenceAdapter) -> AsyncIterator[PersistenceStore]:
        """A store over the adapter."""
        async with PersistenceStore(adapter=adapter, call_timeout_ms=30_000) as store:
            yield store
