"""Persistence: rooms, participants, threads, messages, and how they are bound together."""

from trunkline.persistence.adapter import DirectoryQuery, Inbound, PersistenceAdapter
from trunkline.persistence.models import (
    BridgeConfig,
    IngressSubscription,
    Message,
    OnboardingFlow,
    Participant,
    Room,
    RoomBinding,
    RoutingPolicy,
    Thread,
)
from trunkline.persistence.store import PersistenceStore

__all__ = (
    "BridgeConfig",
    "DirectoryQuery",
    "Inbound",
    "IngressSubscription",
    "Message",
    "OnboardingFlow",
    "Participant",
    "PersistenceAdapter",
    "PersistenceStore",
    "Room",
    "RoomBinding",
    "RoutingPolicy",
    "Thread",
)
