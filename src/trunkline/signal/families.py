"""The families of keys that the Signal protocol keeps, as Baileys and its ports name them."""

from __future__ import annotations

__all__ = ("FAMILIES",)

FAMILIES = frozenset(
    {
        "app-state-sync-key",
        "app-state-sync-version",
        "device-list",
        "identity-key",
        "lid-mapping",
        "pre-key",
        "sender-key",
        "sender-key-memory",
        "session",
        "tctoken",
    }
)
