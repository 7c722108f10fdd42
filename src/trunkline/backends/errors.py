"""What a driver's error means to a store. Drivers translate into these; actors only meet these."""

from __future__ import annotations

from trunkline.errors import StoreUnavailable

__all__ = ("Conflict", "ConnectionLost")


class ConnectionLost(StoreUnavailable):
    """The connection broke; what was under way may or may not have been committed."""


class Conflict(StoreUnavailable):
    """Another transaction stood in the way. Nothing was stored, and trying again helps."""
