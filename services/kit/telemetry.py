"""Traces. One trace shows one order from its caller through every service and back through the undos.

Tracing is off, and costs nothing, unless `OTEL_EXPORTER_OTLP_ENDPOINT` (any collector, OTLP over HTTP) or
`PAYMESH_TRACE_FILE` (one JSON object a line, for tests and for a quick look) is set. `OTEL_TRACES_SAMPLER_ARG` is the
share of healthy orders that is traced.

Work travels in sets, so a trace cannot follow calls alone: every item of a batch carries its own `traceparent`, empty
when it is not sampled. Unsampled items open no spans at all.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

SAMPLE_RATIO_DEFAULT = 0.01
"""Of healthy orders. At thousands of orders a second one in a hundred is plenty, and the rest pay nothing."""

_CHOSEN = "paymesh-chosen"
"""In the context of a root span: the dice were thrown already, and cheaper than by the SDK."""

_propagator = TraceContextTextMapPropagator()
_sampled_share: float = 0.0


class _FileExporter(SpanExporter):
    """Appends spans to a file as JSON lines; several processes may share it (each write is one append)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(json.loads(span.to_json(indent=None))) + "\n" for span in spans)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
        return SpanExportResult.SUCCESS


class _Root(TraceIdRatioBased):
    """Samples a share of the traces that begin here, and all that were chosen."""

    def should_sample(
        self,
        parent_context: otel_context.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        *rest: Any,
        **options: Any,
    ) -> SamplingResult:
        if parent_context is not None and _CHOSEN in parent_context:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return super().should_sample(parent_context, trace_id, name, kind, attributes, *rest, **options)


def set_up(service: str) -> None:
    """Read the environment and start exporting, if it asks for that. Called once per process."""
    global _sampled_share
    exporters: list[SpanExporter] = []
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter())
    if path := os.environ.get("PAYMESH_TRACE_FILE"):
        exporters.append(_FileExporter(Path(path)))
    if not exporters:
        return
    _sampled_share = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", SAMPLE_RATIO_DEFAULT))
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}),
        sampler=ParentBased(_Root(_sampled_share)),
    )
    for exporter in exporters:
        file = isinstance(exporter, _FileExporter)
        provider.add_span_processor(SimpleSpanProcessor(exporter) if file else BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def tracing() -> bool:
    """Whether spans go anywhere at all."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def shut_down() -> None:
    """Send what has not been sent yet."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def start_call(name: str, headers: Mapping[str, str], kind: SpanKind) -> Span:
    """The span of one RPC, continuing the trace in `headers`; not recording when the trace is not sampled."""
    return _start_at_the_door(name, headers, kind, {"rpc.system.name": "grpc", "rpc.method": name})


def start_request(name: str, headers: Mapping[str, str], attributes: Mapping[str, str]) -> Span:
    """The same for a request over HTTP."""
    return _start_at_the_door(name, headers, SpanKind.SERVER, attributes)


def _start_at_the_door(
    name: str, headers: Mapping[str, str], kind: SpanKind, attributes: Mapping[str, str]
) -> Span:
    parent = _propagator.extract(headers) if "traceparent" in headers else otel_context.Context()
    return _tracer().start_span(name, parent, kind=kind, attributes=dict(attributes))


def start_item(name: str, traceparent: str, *, sample_root: bool = False) -> Span | None:
    """The span of one item of a set: continues `traceparent`; without one, starts a trace for a share of the items if
    `sample_root`. None when the item is not traced."""
    if traceparent:
        parent = _propagator.extract({"traceparent": traceparent})
    elif sample_root and _sampled_share and random.random() < _sampled_share:  # noqa: S311 - sampling
        parent = otel_context.Context({_CHOSEN: True})
    else:
        return None
    attributes = {"rpc.system.name": "grpc", "rpc.method": name}
    span = _tracer().start_span(name, parent, kind=SpanKind.SERVER, attributes=attributes)
    return span if span.is_recording() else None


def start_child(
    parent: Span | None,
    name: str,
    attributes: Mapping[str, str | int] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    links: Iterable[Span] = (),
    start_time_ns: int | None = None,
) -> Span | None:
    """A span under `parent`; None when the parent is not traced."""
    if parent is None or not parent.is_recording():
        return None
    return _tracer().start_span(
        name,
        trace.set_span_in_context(parent),
        kind=kind,
        attributes=dict(attributes or {}),
        links=[Link(span.get_span_context()) for span in links],
        start_time=start_time_ns,
    )


def resume(traceparent: str, name: str, attributes: Mapping[str, str | int]) -> Span | None:
    """A span that continues a stored trace, for example after a crash; None without one."""
    if not traceparent:
        return None
    span = _tracer().start_span(
        name, _propagator.extract({"traceparent": traceparent}), attributes=dict(attributes)
    )
    return span if span.is_recording() else None


TRACE_SECONDS = 60.0
"""A trace that was left alone for longer is not continued but linked to: nobody looks at one that lasts for hours."""


def continue_later(
    traceparent: str, name: str, attributes: Mapping[str, str | int], age_seconds: float
) -> Span | None:
    """A span for what a message from somebody else leads to, so long after it was sent; None when that is not
    traced."""
    if age_seconds <= TRACE_SECONDS:
        return resume(traceparent, name, attributes)
    cause = trace.get_current_span(_propagator.extract({"traceparent": traceparent})).get_span_context()
    if not cause.trace_flags.sampled:
        return None
    parent = otel_context.Context({_CHOSEN: True})
    span = _tracer().start_span(name, parent, attributes=dict(attributes), links=[Link(cause)])
    return span if span.is_recording() else None


def traceparent_of(span: Span | None) -> str:
    """The W3C traceparent that continues `span`; empty when there is nothing to continue."""
    if span is None:
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01" if context.trace_flags.sampled else ""


def end(span: Span | None, outcome: str = "", *, failed: bool = False) -> None:
    """Close a span, with what it came to."""
    if span is None:
        return
    if outcome:
        span.set_attribute("error.type" if failed else "paymesh.outcome", outcome)
    if failed:
        span.set_status(StatusCode.ERROR, outcome)
    span.end()


def _tracer() -> trace.Tracer:
    return trace.get_tracer("paymesh")
