"""The fsm: which step of a dialogue a user is at, and what was collected on the way."""

from trunkline.fsm.adapter import FSMAdapter
from trunkline.fsm.flows import Flow, FSMContext, InvalidTransition
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.fsm.state import FSMState
from trunkline.fsm.store import ConversationExpired, FSMStore
from trunkline.fsm.strategies import Chat, ChatTopic, ChatTopicUser, ChatUser, User

__all__ = (
    "Chat",
    "ChatTopic",
    "ChatTopicUser",
    "ChatUser",
    "ConversationExpired",
    "FSMAdapter",
    "FSMContext",
    "FSMState",
    "FSMStore",
    "Flow",
    "InvalidTransition",
    "MemoryFSMAdapter",
    "User",
)
