"""OpenTelemetry spans around the calls of stores, off unless a program turns them on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from trunkline.errors import ConfigurationError

try:
    from opentelemetry.trace import SpanKind, Tracer, TracerProvider, get_tracer
except ModuleNotFoundError:
    raise ConfigurationError(
        "spans need the OpenTelemetry API: pip install 'trunkline[otel]'"
    ) from None

__all__ = ("trace_stores",)


class _Traceable(Protocol):
    name: str
    tracing: Any


def trace_stores(*stores: _Traceable, tracer_provider: TracerProvider | None = None) -> None:
    """Make a span around every call of `stores` from now on.

    A span is named `<instance> <operation>`, such as `persistence save_message`, and has the
    attributes `trunkline.instance` and `trunkline.operation`. Arguments and results stay out: they
    may be secrets.

    Args:
        *stores: `PersistenceStore`, `FSMStore`, `SignalStore`, `Inbox`.
        tracer_provider: the program's own by default.

    Example:
        >>> from trunkline import FSMStore
        >>> store = FSMStore("memory://")
        >>> trace_stores(store)
    """
    tracer = get_tracer("trunkline", tracer_provider=tracer_provider)
    for store in stores:
        store.tracing = partial(_span, tracer, store.name)


def _span(tracer: Tracer, instance: str, operation: str) -> AbstractContextManager[Any]:
    return tracer.start_as_current_span(
        f"{instance} {operation}",
        kind=SpanKind.CLIENT,
        attributes={"trunkline.instance": instance, "trunkline.operation": operation},
        # The message of an error is no secret, but its traceback may quote one.
        record_exception=False,
    )
