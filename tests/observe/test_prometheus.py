from __future__ import annotations

from prometheus_client import CollectorRegistry

from trunkline import Trunkline
from trunkline.observe.prometheus import TrunklineCollector


def value(registry, name, **labels):
    return registry.get_sample_value(name, labels)


async def test_a_scrape_reads_the_counters_of_every_part():
    registry = CollectorRegistry()
    async with Trunkline("memory://", partition_count=2, name="bot", signal=None) as line:
        registry.register(TrunklineCollector(line))
        key = ("telegram", "bot", "42")
        await line.router.set(key, {"external_room_id": 42})
        await line.router.resolve(key)
        await line.fsm.init("bot")
        await line.fsm.get_state("bot", (1, 2))

        partition = str(line.router.route_partition(key))
        other = str(1 - int(partition))
        labels = {"instance": "bot.router", "partition": partition}
        assert value(registry, "trunkline_router_hits_total", **labels) == 1
        assert value(registry, "trunkline_router_sets_total", **labels) == 1
        assert value(registry, "trunkline_router_entries", **labels) == 1
        assert value(registry, "trunkline_router_hits_total", **{**labels, "partition": other}) == 0
        assert value(registry, "trunkline_store_calls_total", instance="bot.fsm") == 1
        assert value(registry, "trunkline_store_workers_up", instance="bot.persistence") == 1
        assert value(registry, "trunkline_store_workers_up", instance="bot.inbox") == 1
        assert value(registry, "trunkline_store_calls_total", instance="bot.signal") is None


async def test_a_later_scrape_reads_later_counts():
    registry = CollectorRegistry()
    async with Trunkline("memory://", partition_count=1, name="bot") as line:
        registry.register(TrunklineCollector(line))
        labels = {"instance": "bot.router", "partition": "0"}
        for sets in range(3):
            assert value(registry, "trunkline_router_sets_total", **labels) == sets
            await line.router.set(("irc", "libera", "#a"), {"external_room_id": "#a"})
