"""What the server counts about itself, in the Prometheus text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a cached answer (1 ms) to the default time limit of a request (30 s).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one server; each has a registry of its own, so that several can live in one process."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "chiasm_requests", "Answered requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "chiasm_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._at_work = Gauge("chiasm_requests_at_work", "Requests being answered", registry=self._registry)
        self._items = Gauge("chiasm_items", "Items in the store", registry=self._registry)
        self._searches = Counter("chiasm_searches", "Answered searches", ["kind"], registry=self._registry)
        self._nothing = Counter("chiasm_nothing_here", "Searches that found nothing relevant", registry=self._registry)
        self._embedded = Counter("chiasm_embedded_inputs", "Inputs embedded", ["modality"], registry=self._registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answered request; ``route`` is the route's template, never the raw path (unbounded labels)."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def at_work(self, count: int) -> None:
        self._at_work.set(count)

    def search(self, kind: str, nothing_here: bool) -> None:
        """Counts one search; ``kind`` is what was searched by: text, image, audio, vector or item."""
        self._searches.labels(kind).inc()
        if nothing_here:
            self._nothing.inc()

    def embedded(self, modality: str) -> None:
        self._embedded.labels(modality).inc()

    def render(self, items: int) -> bytes:
        """The current figures as text, with the number of items in the store."""
        self._items.set(items)
        return generate_latest(self._registry)
