"""Metrics in Prometheus format, named as the OpenTelemetry conventions name them, in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)

RPC_SERVER_DURATION = Histogram(
    "rpc_server_call_duration_seconds",
    "Time from the arrival of a call to its answer.",
    ("rpc_method", "rpc_response_status_code"),
    buckets=_SECONDS,
)
HTTP_SERVER_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Time from the arrival of a request to the end of its answer.",
    ("http_request_method", "http_route", "http_response_status_code"),
    buckets=_SECONDS,
)
SET_SIZE = Histogram("paymesh_set_size", "Commands per set.", ("rpc_method",), buckets=_SIZES)
SHED = Counter("paymesh_shed_commands_total", "Commands refused because a queue was full.", ("rpc_method",))
QUEUED = Gauge("paymesh_queued_commands", "Commands that wait for a set.", ("rpc_method",))


def serve(listen: str) -> None:
    """Serve /metrics on `listen` ("host:port") from a thread of its own."""
    host, _, port = listen.rpartition(":")
    start_http_server(int(port), host or "127.0.0.1")


def serve_workers(listen: str, folder: str) -> None:
    """The same for what several processes, started with PROMETHEUS_MULTIPROC_DIR=`folder`, have measured together."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    host, _, port = listen.rpartition(":")
    start_http_server(int(port), host or "127.0.0.1", registry)
