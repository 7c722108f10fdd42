"""What every fsm adapter must do, as tests that run over any of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import anyio
import msgspec
import pytest

from trunkline.contracts.fsm.bots import BotTests
from trunkline.contracts.fsm.concurrency import ConcurrencyTests
from trunkline.contracts.fsm.expiry import ExpiryTests
from trunkline.contracts.fsm.keys import KeyTests
from trunkline.contracts.fsm.locks import LockTests
from trunkline.contracts.fsm.samples import Expire
from trunkline.contracts.fsm.states import StateTests
from trunkline.contracts.fsm.steps import StepTests
from trunkline.contracts.fsm.values import ValueTests
from trunkline.contracts.tables import FAR_MS, TableTests
from trunkline.fsm import FSMAdapter
from trunkline.fsm.adapter import Fields
from trunkline.fsm.records import encode_fields

if TYPE_CHECKING or find_spec("hypothesis") is not None:
    from trunkline.contracts.fsm.properties import PropertyTests
else:
    from trunkline.contracts.no_hypothesis import PropertyTests

__all__ = ("FSMContract",)


def _encoded(data: Fields) -> bytes:
    return msgspec.msgpack.encode(encode_fields(data))


class FSMContract(
    BotTests,
    StateTests,
    KeyTests,
    ValueTests,
    ConcurrencyTests,
    StepTests,
    ExpiryTests,
    LockTests,
    PropertyTests,
    TableTests,
):
    """Subclass it, give it one fixture `adapter`, and pytest tests an adapter of yours.

    The fixture returns a new adapter on an empty database, not yet open. The tests are async, and
    run by the pytest plugin of anyio, on asyncio and on trio if both are installed.

    Example::

        class TestMyAdapter(FSMContract):
            @pytest.fixture
            def adapter(self, tmp_path):
                return MyAdapter(tmp_path / "fsm.db")
    """

    expiring: ClassVar = 1
    sample_rows: ClassVar = {
        "fsm": [
            ("bot", "[1]", "register", "name", _encoded({"n": 1, "b": b"\0"}), FAR_MS),
            ("bot", "[2]", None, None, _encoded({}), None),
            ("café", "[1]", None, "waiting", _encoded({"ü": None}), None),
        ]
    }

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> FSMAdapter:
        raise NotImplementedError("a subclass of FSMContract has a fixture 'adapter'")

    @pytest.fixture
    def expire(self, adapter: FSMAdapter) -> Expire:
        """Lets time pass. By default really; override it where an adapter has a settable clock."""

        async def sleep(duration_ms: int) -> None:
            await anyio.sleep(duration_ms / 1000)

        return sleep
