"""Signal: the key families of the Signal protocol, with transactions."""

from trunkline.signal.adapter import SignalAdapter
from trunkline.signal.codec import FAMILIES
from trunkline.signal.store import SignalStore
from trunkline.signal.transaction import SignalTransaction

__all__ = ("FAMILIES", "SignalAdapter", "SignalStore", "SignalTransaction")
