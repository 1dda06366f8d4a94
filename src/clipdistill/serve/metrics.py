"""What a server counts, for Prometheus, in a registry of its own: several servers can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters by their subject; none holds what was asked, or by whom."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clipdistill_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "clipdistill_request_seconds",
            "From request to answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.embedding = Histogram(
            "clipdistill_embedding_seconds", "One batch.", ["side"], buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "clipdistill_batch_rows",
            "Inputs that went through a model together.",
            ["side"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.searching = Histogram(
            "clipdistill_search_seconds", "One search, with its embedding.", ["index"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.inside = Gauge("clipdistill_requests_inside", "Taken in and not answered yet.", registry=self.registry)
        self.rows = Gauge("clipdistill_index_rows", "Pictures of an index.", ["index"], registry=self.registry)
        self.version = Gauge("clipdistill_index_version", "Its version.", ["index"], registry=self.registry)

    def text(self) -> bytes:
        """Everything, in the text format that Prometheus reads."""
        return generate_latest(self.registry)
