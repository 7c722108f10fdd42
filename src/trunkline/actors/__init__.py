"""The kernel: actors, the mailboxes in front of them, and the supervisor above them.

It knows nothing of sessions or stores. Write an `Actor`, `Supervisor.spawn` it, and call its
handlers through the `ActorRef` that you get.
"""

from trunkline.actors.actor import Actor, BatchActor
from trunkline.actors.clock import Clock, monotonic_ms, sleep_ms
from trunkline.actors.lifetime import Service
from trunkline.actors.log import Log
from trunkline.actors.mailbox import Call
from trunkline.actors.policy import RestartPolicy
from trunkline.actors.ref import NOT_LOCAL, ActorRef, NotLocal
from trunkline.actors.supervisor import LifecycleListener, Supervisor

__all__ = (
    "NOT_LOCAL",
    "Actor",
    "ActorRef",
    "BatchActor",
    "Call",
    "Clock",
    "LifecycleListener",
    "Log",
    "NotLocal",
    "RestartPolicy",
    "Service",
    "Supervisor",
    "monotonic_ms",
    "sleep_ms",
)
