from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from trunkline import SignalStore
from trunkline.errors import NotFound
from trunkline.observe.otel import trace_stores
from trunkline.persistence import PersistenceStore, Room


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


async def test_a_call_of_a_traced_store_is_a_span(exporter, provider):
    async with PersistenceStore("memory://") as store:
        trace_stores(store, tracer_provider=provider)
        await store.save_room(Room.new(id="r1"))

    (span,) = exporter.get_finished_spans()
    assert span.name == "persistence save_room"
    assert span.attributes == {
        "trunkline.instance": "persistence",
        "trunkline.operation": "save_room",
    }


async def test_a_call_that_fails_is_a_span_with_an_error(exporter, provider):
    async with PersistenceStore("memory://") as store:
        trace_stores(store, tracer_provider=provider)
        with pytest.raises(NotFound):
            await store.get_room("nobody")

    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_no_value_is_in_a_span(exporter, provider):
    async with SignalStore("memory://") as store:
        trace_stores(store, tracer_provider=provider)
        await store.set({"session": {"alice": b"MARKER"}})
        await store.get("session", ["alice"])

    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["signal commit", "signal get"]
    assert not any("MARKER" in span.to_json() for span in spans)


async def test_a_store_that_nobody_traces_makes_no_span(exporter, provider):
    async with PersistenceStore("memory://") as store:
        await store.save_room(Room.new(id="r1"))

    assert exporter.get_finished_spans() == ()
