"""What every fsm adapter must do, as tests that run over any of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import anyio
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
from trunkline.fsm import FSMAdapter

if TYPE_CHECKING or find_spec("hypothesis") is not None:
    from trunkline.contracts.fsm.properties import PropertyTests
else:
    from trunkline.contracts.no_hypothesis import PropertyTests

__all__ = ("FSMContract",)


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
