"""The status of a live run in the format of Prometheus."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adafocus_edge import __version__
from adafocus_edge.serve import schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

COUNTERS = {
    "frames": "Frames captured.",
    "glimpses": "Frames processed by the model.",
    "windows": "Windows finished.",
    "dropped": "Frames dropped because the model was busy.",
    "damaged": "Frames that could not be decoded.",
    "reconnects": "Times a source was reconnected.",
}
GAUGES = {
    "fps_in": ("captured_fps", "Frames captured per second."),
    "fps_glimpsed": ("glimpsed_fps", "Frames processed by the model per second."),
    "waiting": ("waiting_frames", "Frames waiting for the model."),
    "last_frame_age_s": ("last_frame_age_seconds", "Time since the newest frame."),
    "stale": ("source_stale", "1 if the last result is out of date, for example because the source was lost."),
    "dropping": ("source_dropping", "1 while frames are dropped because the model is too slow."),
    "width": ("width_pixels", "Width of the newest frame."),
    "height": ("height_pixels", "Height of the newest frame."),
}
QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
SENSORS = {
    "temperature_c": ("temperature_celsius", "Temperature of the device."),
    "power_w": ("power_watts", "Power consumption of the device."),
}


def exposition(status: schemas.Status, own: Mapping[str, tuple[float, str]]) -> bytes:
    """Return the body of ``/metrics``.

    Args:
        status: the run's status.
        own: gauges of the server itself: value and description by name.
    """

    class OneStatus(Collector):
        def collect(self) -> Iterable[Metric]:
            return _families(status, own)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OneStatus())
    return generate_latest(registry)


def _families(status: schemas.Status, own: Mapping[str, tuple[float, str]]) -> Iterator[Metric]:
    sources = status.sources
    if sources:
        for key, text in COUNTERS.items():
            counter = CounterMetricFamily(f"adafocus_{key}", text, labels=["source"])
            for source in sources:
                counter.add_metric([source.name], getattr(source, key))
            yield counter
    for key, (name, text) in GAUGES.items():
        gauge = GaugeMetricFamily(f"adafocus_{name}", text, labels=["source"])
        for source in sources:
            if (value := getattr(source, key)) is not None:
                gauge.add_metric([source.name], value)
        yield gauge
    yield _states(sources)
    yield _latency(sources)
    yield from _listeners(status.listeners)
    yield from _sensors(status.sensors)
    yield GaugeMetricFamily("adafocus_up", "1 while the model's loop runs.", value=float(status.alive))
    yield GaugeMetricFamily(
        "adafocus_stalled_seconds", "Time since the model's loop last moved.", value=status.stalled_s
    )
    yield GaugeMetricFamily("adafocus_uptime_seconds", "Time since the run began.", value=status.uptime_s)
    for name, (value, text) in own.items():
        yield GaugeMetricFamily(f"adafocus_{name}", text, value=value)
    labels = {
        "version": __version__,
        "backend": str(status.model["backend"]),
        "variant": str(status.model["variant"]),
    }
    yield InfoMetricFamily("adafocus_build", "Version, backend and variant in use.", value=labels)


def _states(sources: Iterable[schemas.Source]) -> Metric:
    gauge = GaugeMetricFamily(
        "adafocus_source_state", "1 for the state that a source is in.", labels=["source", "state"]
    )
    for source in sources:
        for state in get_args(schemas.State):
            gauge.add_metric([source.name, state], float(source.state == state))
    return gauge


def _latency(sources: Iterable[schemas.Source]) -> Metric:
    # prometheus_client's own summaries have no quantiles.
    summary = Metric("adafocus_latency_seconds", "From a frame's capture to its provisional result.", "summary")
    for source in sources:
        for key, quantile in QUANTILES.items():
            if (value_ms := getattr(source.latency_ms, key)) is not None:
                labels = {"source": source.name, "quantile": quantile}
                summary.add_sample("adafocus_latency_seconds", labels, value_ms / 1e3)
    return summary


def _listeners(listeners: Iterable[schemas.Listener]) -> Iterator[Metric]:
    handled = CounterMetricFamily("adafocus_listener_handled", "Messages handled.", labels=["listener"])
    dropped = CounterMetricFamily(
        "adafocus_listener_dropped", "Messages dropped because the queue was full.", labels=["listener"]
    )
    failed = CounterMetricFamily("adafocus_listener_failed", "Messages that failed.", labels=["listener"])
    waiting = GaugeMetricFamily("adafocus_listener_waiting", "Messages waiting.", labels=["listener"])
    # Two listeners that write to the same place have the same name, and Prometheus rejects a series that occurs twice.
    sums: dict[str, Counter[str]] = {}
    for listener in listeners:
        sums.setdefault(listener.name, Counter()).update(
            {key: getattr(listener, key) for key in ("handled", "dropped", "failed", "waiting")}
        )
    for name, totals in sums.items():
        handled.add_metric([name], totals["handled"])
        dropped.add_metric([name], totals["dropped"])
        failed.add_metric([name], totals["failed"])
        waiting.add_metric([name], totals["waiting"])
    yield from (handled, dropped, failed, waiting)


def _sensors(sensors: Mapping[str, Any]) -> Iterator[Metric]:
    others = GaugeMetricFamily("adafocus_sensor", "Other sensor readings of the device.", labels=["name"])
    for key, value in sensors.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if key in SENSORS:
            name, text = SENSORS[key]
            yield GaugeMetricFamily(f"adafocus_{name}", text, value=value)
        else:
            others.add_metric([key], value)
    yield others
