"""Prometheus metrics: the counters of a router, a store or a whole line, read when scraped.

They cost nothing on the hot path, which counts in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec

from trunkline.errors import ConfigurationError

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError:
    raise ConfigurationError(
        "Prometheus metrics need prometheus_client: pip install 'trunkline[prometheus]'"
    ) from None

__all__ = ("TrunklineCollector",)

#: Counts that go up and down; all others only go up.
_GAUGES = {"entries", "capacity", "mailbox_depth", "workers_up", "workers"}


class _Counting(Protocol):
    """A `SessionRouter`, a store or a `Trunkline`."""

    name: str

    def stats(self) -> Any: ...


class TrunklineCollector(Collector):
    """A collector for `prometheus_client.REGISTRY.register`.

    A router's counts are `trunkline_router_<count>` with the labels `instance` and `partition`, a
    store's `trunkline_store_<count>` with the label `instance`; what only counts up ends in
    `_total`.

    Args:
        sources: routers, stores or lines. A line has all of its parts collected.

    Example:
        >>> from prometheus_client import CollectorRegistry, generate_latest
        >>> from trunkline import SessionRouter
        >>> registry = CollectorRegistry()
        >>> registry.register(TrunklineCollector(SessionRouter(partition_count=1)))
        >>> b'trunkline_router_hits_total{instance="router",partition="0"} 0.0' in (
        ...     generate_latest(registry)
        ... )
        True
    """

    def __init__(self, *sources: _Counting) -> None:
        self._sources = sources

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for source in self._sources:
            for subject, labels, counts in _counts(source.name, source.stats()):
                for name, value in counts.items():
                    family = families.get(f"{subject}_{name}")
                    if family is None:
                        family = families[f"{subject}_{name}"] = _family(subject, name, labels)
                    family.add_metric(list(labels.values()), value)
        yield from families.values()


def _counts(
    instance: str, stats: Any
) -> Iterator[tuple[str, Mapping[str, str], Mapping[str, int]]]:
    """Each set of counts in `stats`, with its subject and labels."""
    if hasattr(stats, "partitions"):
        for index, partition in enumerate(stats.partitions):
            labels = {"instance": instance, "partition": str(index)}
            yield "router", labels, msgspec.structs.asdict(partition)
    elif hasattr(stats, "router"):
        for part in stats.__struct_fields__:
            if getattr(stats, part) is not None:
                yield from _counts(f"{instance}.{part}", getattr(stats, part))
    else:
        yield "store", {"instance": instance}, msgspec.structs.asdict(stats)


def _family(
    subject: str, name: str, labels: Mapping[str, str]
) -> CounterMetricFamily | GaugeMetricFamily:
    kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
    return kind(
        f"trunkline_{subject}_{name}",
        f"{name.replace('_', ' ')} of a trunkline {subject}",
        labels=list(labels),
    )
