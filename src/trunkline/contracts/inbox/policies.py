"""The policy that is stored for processes without one."""

from __future__ import annotations

from trunkline.contracts.inbox.samples import open_box
from trunkline.turns import Inbox, InboxAdapter, TurnPolicy

__all__ = ("PolicyTests",)


class PolicyTests:
    """A part of `InboxContract`."""

    async def test_a_new_inbox_has_no_stored_policy(self, adapter: InboxAdapter) -> None:
        async with open_box(adapter) as box:
            assert await box.inbox._read(InboxAdapter.load_policy) is None

    async def test_the_policy_that_was_stored_last_is_found(self, adapter: InboxAdapter) -> None:
        first = TurnPolicy(while_busy="steer", quiet_ms=1, expire_after_ms=2, max_waiting=3)
        second = TurnPolicy(while_busy="latest", when_full="drop_oldest")
        async with open_box(adapter) as box:
            for policy in (first, second):
                await box.call(None, InboxAdapter.save_policy, policy)
                assert await box.inbox._read(InboxAdapter.load_policy) == policy

    async def test_an_inbox_without_a_policy_follows_the_stored_one(
        self, adapter: InboxAdapter
    ) -> None:
        stored = TurnPolicy(while_busy="queue", max_waiting=7)
        async with Inbox(adapter=adapter) as inbox:
            assert inbox.policy == TurnPolicy()
            await inbox.follow(stored)
            assert inbox.policy == stored
            receipt = await inbox.accept(("telegram", "bot", "42"), "hi")
            assert receipt.waiting == 1

    async def test_an_inbox_with_a_policy_keeps_it(self, adapter: InboxAdapter) -> None:
        own, stored = TurnPolicy(while_busy="queue"), TurnPolicy(while_busy="drop")
        async with Inbox(adapter=adapter, policy=own) as inbox:
            await inbox.follow(stored)
            assert inbox.policy == own
            assert await inbox._read(InboxAdapter.load_policy) == stored
