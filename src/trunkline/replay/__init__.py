"""Replay: what a router would have done with the traffic of a chat log.

`ChatLog` reads messages from files, `replay` plays them to a `SessionRouter` on the log's own
clock, and the `ReplayReport` says how the routing went and which TTL and capacity the log needs.
`trunkline.replay.history` saves the messages into a persistence store.

Example:
    >>> import anyio
    >>> from trunkline import SessionKey
    >>> from trunkline.routing import RouterConfig
    >>> room = SessionKey("telegram", "support_bot", "42")
    >>> minute_ms = 60_000
    >>> messages = [ChatMessage(at_ms, room) for at_ms in (0, minute_ms, 50 * minute_ms)]
    >>> report = anyio.run(replay, messages, RouterConfig(ttl_ms=30 * minute_ms))
    >>> report.late_answers.hits, report.late_answers.expired
    (1, 1)
"""

from trunkline.replay.log import ChatLog, ChatMessage
from trunkline.replay.player import replay
from trunkline.replay.report import (
    LateAnswers,
    Latency,
    NeededTtl,
    Outcomes,
    PartitionReport,
    ReplayReport,
)

__all__ = (
    "ChatLog",
    "ChatMessage",
    "LateAnswers",
    "Latency",
    "NeededTtl",
    "Outcomes",
    "PartitionReport",
    "ReplayReport",
    "replay",
)
