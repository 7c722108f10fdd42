"""The router: session keys, routes, and the partitions that hold them."""

from trunkline.routing.key import SessionKey
from trunkline.routing.route import Resolution, Route, RouteRecord
from trunkline.routing.router import PruneResult, RouterConfig, SessionRouter
from trunkline.routing.stats import PartitionStats, RouterStats

__all__ = (
    "PartitionStats",
    "PruneResult",
    "Resolution",
    "Route",
    "RouteRecord",
    "RouterConfig",
    "RouterStats",
    "SessionKey",
    "SessionRouter",
)
