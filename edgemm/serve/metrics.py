"""What /metrics says, in Prometheus' format; by vLLM's names where the meaning is the same.

vLLM: https://docs.vllm.ai/en/stable/design/metrics.html.  Each application has a registry of its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from edgemm.runtimes.image_call import ImageMetrics
    from edgemm.serve.scheduler import Scheduler

__all__ = ["Measured", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
OF_MODEL = ("model_name",)


class Metrics:
    """Every number, and the registry that holds them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = registry = CollectorRegistry()
        # vLLM's
        Gauge("vllm:num_requests_running", "requests that are worked on", registry=registry).set_function(
            lambda: scheduler.running
        )
        Gauge("vllm:num_requests_waiting", "requests in the queue", registry=registry).set_function(
            lambda: scheduler.waiting
        )
        self.prompt_tokens = Counter("vllm:prompt_tokens", "tokens read", OF_MODEL, registry=registry)
        self.generated = Counter("vllm:generation_tokens", "tokens written", OF_MODEL, registry=registry)
        self.success = Counter(
            "vllm:request_success", "requests answered", (*OF_MODEL, "finished_reason"), registry=registry
        )
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "from the request", OF_MODEL, registry=registry, buckets=SECONDS
        )
        self.between = Histogram(
            "vllm:inter_token_latency_seconds", "between two tokens", OF_MODEL, registry=registry, buckets=SHORT
        )
        self.whole = Histogram(
            "vllm:e2e_request_latency_seconds", "from request to end", OF_MODEL, registry=registry, buckets=SECONDS
        )
        self.queued = Histogram(
            "vllm:request_queue_time_seconds", "waiting to begin", OF_MODEL, registry=registry, buckets=SECONDS
        )
        # Ours
        self.picture = Histogram(
            "edgemm:picture_seconds", "one picture, waiting included", OF_MODEL, registry=registry, buckets=SECONDS
        )
        self.step = Histogram(
            "edgemm:denoise_step_seconds", "one step, mean of a request", OF_MODEL, registry=registry, buckets=SHORT
        )
        self.pictures = Counter("edgemm:pictures", "pictures drawn", OF_MODEL, registry=registry)
        self.refused = Counter("edgemm:requests_refused", "by the code of the error", ("code",), registry=registry)
        self.cancelled = Counter("edgemm:requests_cancelled", "the client hung up", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """One request, from its arrival."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}  # of each choice
        self.ttft_s: float | None = None
        self.tokens, self.pictures = 0, 0

    def token(self, choice: int, count: int = 1) -> None:
        now, last = time.perf_counter(), self._last.get(choice)
        if last is None:
            self._metrics.first_token.labels(self._model).observe(now - self._began)
            self.ttft_s = self.ttft_s or now - self._began
        else:
            self._metrics.between.labels(self._model).observe(now - last)
        self._last[choice] = now
        self.tokens += count
        self._metrics.generated.labels(self._model).inc(count)

    def drew(self, pictures: int, metrics: ImageMetrics) -> None:
        self.pictures += pictures
        self._metrics.pictures.labels(self._model).inc(pictures)
        if pictures:
            self._metrics.picture.labels(self._model).observe((time.perf_counter() - self._began) / pictures)
        if metrics.steps:
            self._metrics.step.labels(self._model).observe(metrics.step_ms / 1e3)

    def end(self, prompt_tokens: int, reasons: list[str], queued_s: float) -> None:
        of = self._model
        self._metrics.prompt_tokens.labels(of).inc(prompt_tokens)
        self._metrics.whole.labels(of).observe(time.perf_counter() - self._began)
        self._metrics.queued.labels(of).observe(queued_s)
        for reason in reasons:
            self._metrics.success.labels(of, reason).inc()
