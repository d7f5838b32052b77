"""The state of a live run as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adafocus_edge import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

COUNTERS = {
    "frames": "Frames captured.",
    "glimpses": "Frames that the model looked at.",
    "windows": "Windows that gave a result.",
    "dropped": "Frames that were to be looked at, but had no room.",
    "damaged": "Pictures that could not be decoded.",
    "reconnects": "Times a lost source was opened again.",
}
GAUGES = {
    "fps_in": ("captured_fps", "Frames captured per second."),
    "fps_glimpsed": ("glimpsed_fps", "Frames looked at per second."),
    "waiting": ("waiting_frames", "Frames that wait for the model."),
    "last_frame_age_s": ("last_frame_age_seconds", "Time since the newest frame."),
    "stale": ("source_stale", "1 where the last result no longer says what is there, as of a lost source."),
    "dropping": ("source_dropping", "1 while the model is too slow for it."),
    "width": ("width_pixels", "Width of the newest frame."),
    "height": ("height_pixels", "Height of the newest frame."),
}
STATES = ("connecting", "running", "lost", "ended", "failed")
QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
SENSORS = {
    "temperature_c": ("temperature_celsius", "Temperature of the device."),
    "power_w": ("power_watts", "Power that the device draws."),
}


def exposition(status: Mapping[str, Any], own: Mapping[str, tuple[float, str]]) -> bytes:
    """Return ``/metrics``.

    Args:
        status: as ``RunStatus.to_json`` gives it.
        own: values of the server itself, each with what it is.
    """

    class OneStatus(Collector):
        def collect(self) -> Iterable[Metric]:
            return _families(status, own)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OneStatus())
    return generate_latest(registry)


def _families(status: Mapping[str, Any], own: Mapping[str, tuple[float, str]]) -> Iterator[Metric]:
    sources = status["sources"]
    for key, text in COUNTERS.items():
        if any(key in source for source in sources):
            counter = CounterMetricFamily(f"adafocus_{key}", text, labels=["source"])
            for source in sources:
                counter.add_metric([source["name"]], source.get(key, 0))
            yield counter
    for key, (name, text) in GAUGES.items():
        gauge = GaugeMetricFamily(f"adafocus_{name}", text, labels=["source"])
        for source in sources:
            if source.get(key) is not None:
                gauge.add_metric([source["name"]], source[key])
        yield gauge
    yield _states(sources)
    yield _latency(sources)
    yield from _listeners(status["listeners"])
    yield from _sensors(status["sensors"])
    yield GaugeMetricFamily("adafocus_up", "Whether the run is alive.", value=float(status["alive"]))
    yield GaugeMetricFamily("adafocus_stalled_seconds", "Time since the run last moved.", value=status["stalled_s"])
    yield GaugeMetricFamily("adafocus_uptime_seconds", "Time since the run began.", value=status["uptime_s"])
    for name, (value, text) in own.items():
        yield GaugeMetricFamily(f"adafocus_{name}", text, value=value)
    model = status["model"]
    labels = {"version": __version__, "backend": str(model["backend"]), "variant": str(model["variant"])}
    yield InfoMetricFamily("adafocus_build", "What runs here.", value=labels)


def _states(sources: Iterable[Mapping[str, Any]]) -> Metric:
    gauge = GaugeMetricFamily(
        "adafocus_source_state", "1 for the state that a source is in.", labels=["source", "state"]
    )
    for source in sources:
        for state in STATES:
            gauge.add_metric([source["name"], state], float(source["state"] == state))
    return gauge


def _latency(sources: Iterable[Mapping[str, Any]]) -> Metric:
    # prometheus_client's own summaries have no quantiles.
    summary = Metric("adafocus_latency_seconds", "From a frame's capture to what is known of it.", "summary")
    for source in sources:
        for key, quantile in QUANTILES.items():
            if (value_ms := source["latency_ms"].get(key)) is not None:
                labels = {"source": source["name"], "quantile": quantile}
                summary.add_sample("adafocus_latency_seconds", labels, value_ms / 1e3)
    return summary


def _listeners(listeners: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    handled = CounterMetricFamily("adafocus_listener_handled", "Messages that were handled.", labels=["listener"])
    dropped = CounterMetricFamily("adafocus_listener_dropped", "Messages that had no room.", labels=["listener"])
    failed = CounterMetricFamily("adafocus_listener_failed", "Messages that failed.", labels=["listener"])
    waiting = GaugeMetricFamily("adafocus_listener_waiting", "Messages that wait.", labels=["listener"])
    # Two that write to the same place would be the same series twice, which Prometheus refuses.
    together: dict[str, list[float]] = {}
    for listener in listeners:
        sums = together.setdefault(listener["name"], [0.0] * 4)
        for place, key in enumerate(("handled", "dropped", "failed", "waiting")):
            sums[place] += listener[key]
    for name, (done, lost, wrong, queued) in together.items():
        handled.add_metric([name], done)
        dropped.add_metric([name], lost)
        failed.add_metric([name], wrong)
        waiting.add_metric([name], queued)
    yield from (handled, dropped, failed, waiting)


def _sensors(sensors: Mapping[str, Any]) -> Iterator[Metric]:
    others = GaugeMetricFamily("adafocus_sensor", "Other readings of the device.", labels=["name"])
    for key, value in sensors.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if key in SENSORS:
            name, text = SENSORS[key]
            yield GaugeMetricFamily(f"adafocus_{name}", text, value=value)
        else:
            others.add_metric([key], value)
    yield others
