"""What a program can see of trunkline at work: events, and subscribers for them."""

from trunkline.observe.events import Event, Events, Subscriber, log_event

__all__ = ("Event", "Events", "Subscriber", "log_event")
