"""Events: what happens inside, passed to plain functions that a program subscribes."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from traceback import format_exc

import msgspec

from trunkline.actors.log import Log
from trunkline.actors.ref import is_async
from trunkline.errors import ConfigurationError

__all__ = ("Event", "Events", "Subscriber", "log_event")

_log = Log("trunkline.events")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. Subsystems subclass it with fields of their own."""

    #: What happened, in the past tense where it has one: `resolved`, `evicted`, `crashed`.
    name: str
    #: The instance it happened in: the `name=` of a router or a store.
    instance: str


#: A plain function. It runs inside the actor, before the call is answered, so it should be short.
Subscriber = Callable[[Event], object]


class Events:
    """The subscribers of one instance.

    A publisher asks `if events.subscribers:` before it makes an event, so that without a
    subscriber an event costs one attribute.
    """

    __slots__ = ("failures", "subscribers")

    #: The functions to call, in the order of subscription. Replaced, never changed, so that a
    #: subscriber may unsubscribe while an event is published.
    subscribers: tuple[Subscriber, ...]
    #: Exceptions that subscribers raised so far.
    failures: int

    def __init__(self) -> None:
        self.subscribers = ()
        self.failures = 0

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every event from now on.

        An exception that it raises is logged and counted in `failures`; nothing else notices.

        Returns:
            A function that ends the subscription; calling it again does nothing.

        Raises:
            ConfigurationError: `subscriber` is not a plain function: a coroutine of it would never
                be awaited.
        """
        if not callable(subscriber) or is_async(subscriber):
            raise ConfigurationError(f"a subscriber is a plain function, not {subscriber!r}")

        def unsubscribe() -> None:
            self.subscribers = tuple(s for s in self.subscribers if s is not entry)

        # A function may subscribe twice, and each subscription ends on its own.
        def entry(event: Event) -> object:
            return subscriber(event)

        self.subscribers = (*self.subscribers, entry)
        return unsubscribe

    def publish(self, event: Event) -> None:
        """Call every subscriber with `event`."""
        for subscriber in self.subscribers:
            try:
                subscriber(event)
            # A plain function cannot be cancelled. This one has read something that was.
            except (Exception, CancelledError):
                self.failures += 1
                _log.error(
                    "subscriber_failed",
                    event_name=event.name,
                    instance=event.instance,
                    exception=format_exc(),
                )


def log_event(event: Event) -> None:
    """A subscriber that logs every event at debug, with all of its fields that are not `None`."""
    fields = msgspec.structs.asdict(event)
    _log.debug(fields.pop("name"), **{k: v for k, v in fields.items() if v is not None})
