"""Onboarding flows, bridges, routing policies and subscriptions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from trunkline.contracts.persistence.samples import (
    START,
    a_room,
    ids_of,
    not_found,
    subscribed,
)
from trunkline.errors import NotFound
from trunkline.persistence import (
    BridgeConfig,
    IngressSubscription,
    PersistenceStore,
    RoutingPolicy,
)

__all__ = ("SettingTests",)


class SettingTests:
    """A part of `PersistenceContract`."""

    async def test_an_onboarding_flow_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        flow = {"onboarding_id": "o", "step": 2, "answers": {"name": "Ada\0", "tags": ["a", None]}}
        assert await store.save_onboarding(flow) == flow
        assert await store.get_onboarding("o") == flow

    async def test_an_onboarding_flow_saved_again_is_replaced_whole(
        self, store: PersistenceStore
    ) -> None:
        await store.save_onboarding({"onboarding_id": "o", "step": 1, "old": True})
        await store.save_onboarding({"onboarding_id": "other", "step": 9})
        await store.save_onboarding({"onboarding_id": "o", "step": 2})
        assert await store.get_onboarding("o") == {"onboarding_id": "o", "step": 2}

    async def test_an_onboarding_flow_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        await not_found(store.get_onboarding("nothing"))

    async def test_a_bridge_config_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        config = BridgeConfig.new(
            id="bot",
            adapter_module="bots.telegram",
            credentials={"token": "12:ab", "nested": {"key": "k"}},
            opts={"poll": True},
            enabled=False,
            capabilities=["text", {"voice": 1}],
            delivery_policy={"retries": 3},
            revision=7,
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_bridge_config(config) == config
        assert await store.get_bridge_config("bot") == config
        assert await store.list_bridge_configs() == [config]

    async def test_a_bridge_config_that_was_bumped_is_saved_with_its_revision(
        self, store: PersistenceStore
    ) -> None:
        config = await store.save_bridge_config(BridgeConfig.new(id="bot", inserted_at=START))
        for revision in (1, 2, 3):
            config = await store.save_bridge_config(config.bump_revision())
            assert await store.get_bridge_config("bot") == config
            assert (config.revision, config.inserted_at) == (revision, START)
        assert await store.list_bridge_configs() == [config]

    async def test_bridge_configs_are_listed_by_id_and_by_whether_they_are_enabled(
        self, store: PersistenceStore
    ) -> None:
        for one, enabled in (("c", True), ("a", False), ("b", True), ("B", False)):
            await store.save_bridge_config(BridgeConfig.new(id=one, enabled=enabled))
        assert ids_of(await store.list_bridge_configs()) == ["B", "a", "b", "c"]
        assert ids_of(await store.list_bridge_configs(enabled=True)) == ["b", "c"]
        assert ids_of(await store.list_bridge_configs(enabled=False)) == ["B", "a"]
        config = await store.get_bridge_config("b")
        await store.save_bridge_config(replace(config, enabled=False))
        assert ids_of(await store.list_bridge_configs(enabled=True)) == ["c"]

    async def test_bridge_configs_are_listed_in_pages(self, store: PersistenceStore) -> None:
        for one in ("c", "a", "b", "B"):
            await store.save_bridge_config(BridgeConfig.new(id=one, enabled=one != "b"))
        assert ids_of(await store.list_bridge_configs(limit=2)) == ["B", "a"]
        assert ids_of(await store.list_bridge_configs(limit=2, after="a")) == ["b", "c"]
        assert ids_of(await store.list_bridge_configs(limit=1, after="a", enabled=True)) == ["c"]

    async def test_a_bridge_config_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        await store.save_bridge_config(BridgeConfig.new(id="bot"))
        await not_found(store.get_bridge_config("nothing"))
        await not_found(store.delete_bridge_config("nothing"))
        await store.delete_bridge_config("bot")
        await not_found(store.get_bridge_config("bot"))
        await not_found(store.delete_bridge_config("bot"))
        assert await store.list_bridge_configs() == []

    async def test_a_routing_policy_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        policy = RoutingPolicy.new(
            room_id=room.id,
            delivery_mode="primary",
            failover_policy="broadcast",
            dedupe_scope="thread",
            fallback_order=["b2", "b1"],
            metadata={"why": "cheap"},
            revision=3,
            inserted_at=START,
            updated_at=START + timedelta(microseconds=1),
        )
        assert await store.save_routing_policy(policy) == policy
        assert await store.get_routing_policy(room.id) == policy

    async def test_a_room_has_one_routing_policy_the_last_that_was_saved(
        self, store: PersistenceStore
    ) -> None:
        room, other = await a_room(store, "a"), await a_room(store, "b")
        first = await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        kept = await store.save_routing_policy(RoutingPolicy.new(room_id=other.id))
        bumped = await store.save_routing_policy(first.bump_revision())
        assert await store.get_routing_policy(room.id) == bumped
        new = await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        assert await store.get_routing_policy(room.id) == new
        assert await store.get_routing_policy(other.id) == kept
        assert (await store.counts())["routing_policies"] == 2

    async def test_a_routing_policy_that_is_not_there_is_not_found(
        self, store: PersistenceStore
    ) -> None:
        room = await a_room(store)
        await not_found(store.get_routing_policy(room.id))
        await not_found(store.delete_routing_policy(room.id))
        await store.save_routing_policy(RoutingPolicy.new(room_id=room.id))
        await store.delete_routing_policy(room.id)
        await not_found(store.get_routing_policy(room.id))
        await not_found(store.delete_routing_policy(room.id))

    async def test_a_routing_policy_for_a_room_that_is_not_there_is_refused(
        self, store: PersistenceStore
    ) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            await store.save_routing_policy(RoutingPolicy.new(room_id="nowhere"))
        await not_found(store.get_routing_policy("nowhere"))

    async def test_an_ingress_subscription_comes_back_as_it_was_saved(
        self, store: PersistenceStore
    ) -> None:
        subscription = IngressSubscription.new(
            bridge_id="bot",
            adapter_name="telegram",
            status="manual_action_required",
            external_id=42,
            subscription_id="s1",
            target_url="https://example.org/hook?x=1",
            expires_at=START,
            metadata={"tries": 2},
            raw={"ok": True, "result": [1, None, "\0"]},
        )
        assert await store.save_ingress_subscription(subscription) == subscription
        assert await store.list_ingress_subscriptions("bot") == [subscription]

    async def test_a_subscription_saved_again_is_replaced(self, store: PersistenceStore) -> None:
        old = subscribed("bot", "s1", status="pending", metadata={"a": 1})
        await store.save_ingress_subscription(old)
        new = await store.save_ingress_subscription(subscribed("bot", "s1", status="active"))
        assert await store.list_ingress_subscriptions("bot") == [new]

    async def test_a_subscription_of_another_bridge_is_another_one(
        self, store: PersistenceStore
    ) -> None:
        one = await store.save_ingress_subscription(subscribed("b1", "s"))
        other = await store.save_ingress_subscription(subscribed("b2", "s"))
        assert await store.list_ingress_subscriptions("b1") == [one]
        assert await store.list_ingress_subscriptions("b2") == [other]
        assert await store.list_ingress_subscriptions("b3") == []

    async def test_a_bridge_may_have_one_subscription_without_an_id(
        self, store: PersistenceStore
    ) -> None:
        await store.save_ingress_subscription(subscribed("bot", None, status="pending"))
        await store.save_ingress_subscription(subscribed("bot", "s1"))
        new = await store.save_ingress_subscription(subscribed("bot", None, status="active"))
        listed = await store.list_ingress_subscriptions("bot")
        assert listed == [new, subscribed("bot", "s1")]
        await store.delete_ingress_subscription("bot", None)
        assert await store.list_ingress_subscriptions("bot") == [subscribed("bot", "s1")]

    async def test_subscriptions_are_listed_by_their_id_and_by_status(
        self, store: PersistenceStore
    ) -> None:
        statuses = {"c": "active", "a": "expired", "B": "active", "b": "disabled"}
        for one, status in statuses.items():
            await store.save_ingress_subscription(subscribed("bot", one, status=status))

        async def listed(status: str | None = None) -> list[str | None]:
            found = await store.list_ingress_subscriptions("bot", status=status)
            return [one.subscription_id for one in found]

        assert await listed() == ["B", "a", "b", "c"]
        assert await listed("active") == ["B", "c"]
        assert await listed("deleted") == []
        await store.save_ingress_subscription(subscribed("bot", "c", status="deleted"))
        assert await listed("active") == ["B"]
        assert await listed("deleted") == ["c"]

    async def test_subscriptions_are_listed_in_pages(self, store: PersistenceStore) -> None:
        for one in ("b", None, "a"):
            await store.save_ingress_subscription(subscribed("bot", one))
        await store.save_ingress_subscription(subscribed("b2", "c"))
        pages: list[tuple[str | None, str | None]] = [(None, None), ("", "a"), ("a", "b")]
        for after, subscription_id in pages:
            [found] = await store.list_ingress_subscriptions("bot", limit=1, after=after)
            assert found.subscription_id == subscription_id
        assert await store.list_ingress_subscriptions("bot", after="b") == []

    async def test_a_subscription_that_is_not_there_cannot_be_deleted(
        self, store: PersistenceStore
    ) -> None:
        await store.save_ingress_subscription(subscribed("bot", "s1"))
        await not_found(store.delete_ingress_subscription("bot", "s2"))
        await not_found(store.delete_ingress_subscription("b2", "s1"))
        await not_found(store.delete_ingress_subscription("bot", None))
        await store.delete_ingress_subscription("bot", "s1")
        await not_found(store.delete_ingress_subscription("bot", "s1"))
        assert await store.list_ingress_subscriptions("bot") == []
