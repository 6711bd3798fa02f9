"""What the service counts for Prometheus. Each app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Monitor"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Monitor:
    """The metrics of one service. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "declip_requests", "Answers, by path and status.", ("path", "status"), registry=self.registry
        )
        self.pictures = Counter(
            "declip_pictures", "Pictures: localized, or the kind of error.", ("outcome",), registry=self.registry
        )
        self.left = Counter("declip_clients_left", "Clients that left before their answer.", registry=self.registry)
        self.answer_seconds = Histogram(
            "declip_answer_seconds",
            "From the request's head to the answer's end, of /v1/localize.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "declip_batch_pictures", "Pictures computed together.", buckets=_BATCHES, registry=self.registry
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a metric whose value is read when it is asked for."""
        Gauge(f"declip_{name}", what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)
