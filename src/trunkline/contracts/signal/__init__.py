"""What every signal adapter must do, as tests that run over any of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import pytest

from trunkline.contracts.signal.conflicts import ConflictTests
from trunkline.contracts.signal.entries import EntryTests
from trunkline.contracts.signal.locking import LockingTests
from trunkline.contracts.signal.names import NameTests
from trunkline.contracts.signal.secrets import SecretTests
from trunkline.contracts.signal.transact import TransactTests
from trunkline.contracts.signal.transactions import TransactionTests
from trunkline.contracts.signal.values import ValueTests
from trunkline.contracts.tables import TableTests
from trunkline.signal import SignalAdapter

if TYPE_CHECKING or find_spec("hypothesis") is not None:
    from trunkline.contracts.signal.properties import PropertyTests
else:
    from trunkline.contracts.no_hypothesis import PropertyTests

__all__ = ("SignalContract",)


class SignalContract(
    EntryTests,
    ValueTests,
    NameTests,
    TransactionTests,
    LockingTests,
    ConflictTests,
    TransactTests,
    SecretTests,
    PropertyTests,
    TableTests,
):
    """Subclass it, give it one fixture `adapter`, and pytest tests an adapter of yours.

    The fixture returns a new adapter on an empty database, not yet open. The tests are async, and
    run by the pytest plugin of anyio, on asyncio and on trio if both are installed.

    Example::

        class TestMyAdapter(SignalContract):
            @pytest.fixture
            def adapter(self, tmp_path):
                return MyAdapter(tmp_path / "signal.db")
    """

    sample_rows: ClassVar = {
        "signal": [
            ("pre-key", "1", 1, b"\0"),
            ("session", "ada", 7, b"x"),
            ("session", "ö", 1, b""),
        ]
    }

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def adapter(self) -> SignalAdapter:
        raise NotImplementedError("a subclass of SignalContract has a fixture 'adapter'")
