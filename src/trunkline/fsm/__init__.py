"""The fsm: which step of a dialogue a user is at, and what was collected on the way."""

from trunkline.fsm.adapter import FSMAdapter
from trunkline.fsm.state import FSMState
from trunkline.fsm.store import ConversationExpired, FSMStore

__all__ = ("ConversationExpired", "FSMAdapter", "FSMState", "FSMStore")
