"""What every inbox adapter must do, as tests that run over any of them."""

from __future__ import annotations

from typing import ClassVar

import anyio
import msgspec
import pytest

from trunkline.contracts.inbox.acceptance import AcceptanceTests
from trunkline.contracts.inbox.batches import BatchTests
from trunkline.contracts.inbox.cancels import CancelTests
from trunkline.contracts.inbox.cells import CellTests
from trunkline.contracts.inbox.fences import FenceTests
from trunkline.contracts.inbox.items import ItemTests
from trunkline.contracts.inbox.modes import ModeTests
from trunkline.contracts.inbox.order import OrderTests
from trunkline.contracts.inbox.owners import OwnerTests
from trunkline.contracts.inbox.policies import PolicyTests
from trunkline.contracts.inbox.samples import Advance
from trunkline.contracts.inbox.steps import StepTests
from trunkline.contracts.inbox.times import TimeTests
from trunkline.contracts.tables import FAR_MS, TableTests
from trunkline.turns import InboxAdapter
from trunkline.turns.session import Entry, Session

__all__ = ("InboxContract",)


class InboxContract(
    AcceptanceTests,
    OrderTests,
    ModeTests,
    TimeTests,
    FenceTests,
    OwnerTests,
    CancelTests,
    ItemTests,
    StepTests,
    PolicyTests,
    BatchTests,
    CellTests,
    TableTests,
):
    """Subclass it, give it one fixture `adapter`, and pytest tests an adapter of yours.

    The fixture returns a new adapter on an empty database, not yet open. The tests are async, and
    run by the pytest plugin of anyio, on asyncio and on trio if both are installed.

    Example::

        class TestMyAdapter(InboxContract):
            @pytest.fixture
            def adapter(self, tmp_path):
                return MyAdapter(tmp_path / "inbox.db")
    """

    #: A short time that a call never takes. A suite whose `advance` does not wait sets it higher,
    #: up to 5,000, so that a busy machine makes no difference.
    unit_ms: int = 200

    sample_rows: ClassVar = {
        "inbox_sessions": [
            ("telegram:bot:42", 0, 1, 1, 0, msgspec.msgpack.encode(Session([Entry("a", 1)]))),
            ("telegram:bot:café", None, 1, 0, 0, msgspec.msgpack.encode(Session())),
        ],
        "inbox_items": [
            ("a", "telegram:bot:42", None, 1, 0, 0, None, b"0hi"),
            ("b", "telegram:bot:42", "7", 1, 3, 3, "ValueError('☃')", b"0\0"),
        ],
        "inbox_marks": [("AAAAAAAAAAAAAAAAAAAAAA", "a", 2 * FAR_MS)],
        "inbox_steps": [
            ("group", "greet", "telegram:bot:42", b"0hi"),
            ("group", "greet#2", "telegram:bot:42", b""),
        ],
    }

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> InboxAdapter:
        raise NotImplementedError("a subclass of InboxContract has a fixture 'adapter'")

    @pytest.fixture
    def advance(self, adapter: InboxAdapter) -> Advance:
        """Lets time pass. By default really; override it where an adapter has a settable clock."""

        async def sleep(duration_ms: int) -> None:
            await anyio.sleep(duration_ms / 1000)

        return sleep
