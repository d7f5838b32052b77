"""The MQTT sink: publishes windows, events and states to a broker."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from uuid import uuid4

from adafocus_edge import __version__
from adafocus_edge.errors import AdaFocusError, MissingExtraError, UsageError
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Event, Message, Notice, Rules, Window
from adafocus_edge.live.sinks.server import split_server
from adafocus_edge.system.addresses import encoding_hint, shown_server
from adafocus_edge.system.backoff import Backoff
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.retention import FailureReporter, SafeNames, safe_name, short_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paho.mqtt.client import MQTTMessageInfo

DEFAULT_PREFIX = "adafocus"
MAX_PREFIX_BYTES = 1000
AVAILABILITY = "{{ 'offline' if value_json.notice in ('lost', 'failed', 'ended') else 'online' }}"
"""Template by which Home Assistant takes from a notice whether a source is there."""


def active_topic(topic: str, label: str) -> str:
    """Return the topic that says whether an event of a label lasts, below a source's; different for each label."""
    safe = safe_name(label)
    return f"{topic}/active/{safe if safe == label else f'{safe}-{short_hash(label)}'}"


def _identity(*names: str) -> str:
    """Return a name for Home Assistant, which takes ASCII only; different for different names."""
    return f"adafocus_{re.sub('[^a-zA-Z0-9]+', '_', '_'.join(names))}_{short_hash(chr(0).join(names))}"


@dataclass(frozen=True)
class Discovery:
    """What is announced to Home Assistant.

    Attributes:
        prefix: of its discovery topics, such as ``homeassistant``.
        labels: of the events; each is a binary sensor of each source.

    Raises:
        UsageError: the prefix is no MQTT topic, or there is no label.
    """

    prefix: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+(/[\w-]+)*", self.prefix):
            raise UsageError(f"--mqtt-discovery {self.prefix}: must be an MQTT topic such as homeassistant")
        if not self.labels:
            raise UsageError("--mqtt-discovery: needs --event, which defines the events to announce")

    def sensor(self, base: str, source: str, label: str, name: str) -> tuple[str, bytes]:
        """Return the topic and the description of the sensor of one label of one source.

        Args:
            base: prefix of our topics.
            source: its safe name.
            label: of the event.
            name: the source's own name.
        """
        identity, device = _identity(base, source, label), _identity(base, source)
        state = active_topic(f"{base}/{source}", label)
        about = {
            "name": label,
            "unique_id": identity,
            "object_id": identity,
            "state_topic": state,
            "json_attributes_topic": f"{state}/event",
            "availability": [
                {"topic": f"{base}/online", "payload_available": "1", "payload_not_available": "0"},
                {
                    "topic": f"{base}/{source}/status",
                    "value_template": AVAILABILITY,
                },
            ],
            "availability_mode": "all",
            "device": {
                "identifiers": [device],
                "name": name,
                "manufacturer": "AdaFocus Edge",
                "sw_version": __version__,
            },
        }
        return f"{self.prefix}/binary_sensor/{identity}/config", to_line(about).encode(errors="backslashreplace")


class Mqtt(Sink):
    """Publishes to an MQTT broker, as JSON, below a prefix: ``SOURCE/window``, ``SOURCE/event``, ``SOURCE/status``.

    Events and states arrive at least once (QoS 1), if necessary after the broker is back; windows arrive at most once.
    States are retained, and so is ``online``: 1, and 0 once the run has ended or its connection has broken.

    Args:
        address: ``mqtt://user:password@host:port/topic/prefix``, or ``mqtts://`` for TLS; user, port and prefix are
            optional.
        report: is called with one line for each new error.
        ca_file: certificates to trust with ``mqtts://`` instead of the system's.
        discovery: what is announced to Home Assistant; None for nothing.
        waiting: maximum number of messages in the queue, and again in the client while the broker is away.

    Raises:
        UsageError: the address is invalid.
        AdaFocusError: ``ca_file`` cannot be read.
        MissingExtraError: paho-mqtt is not installed.
    """

    wants = (Window, Event, Notice, Rules)
    KEEPALIVE_S = 20
    CONNECT_S = 5.0
    FAREWELL_S = 2.0
    """How long the end waits for the broker to accept all messages."""

    def __init__(
        self,
        address: str,
        report: Callable[[str], None],
        *,
        ca_file: Path | None = None,
        discovery: Discovery | None = None,
        waiting: int = 1000,
    ) -> None:
        parts, host, port = split_server(address, "a broker's address", ("mqtt", "mqtts"))
        tls = parts.scheme == "mqtts"
        if ca_file is not None and not tls:
            raise UsageError("certificates need mqtts://: change the scheme of the broker's address, or remove them")
        self._prefix = _prefix(address, unquote(parts.path))
        client = self._client = _new_client()
        if parts.username is not None:
            client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if tls:
            try:
                client.tls_set(None if ca_file is None else str(ca_file))
            except OSError as error:
                raise AdaFocusError(
                    f"{ca_file}: cannot be read as certificates to trust ({error.strerror or error})"
                ) from None
        self._names = SafeNames()
        self._discovery = discovery
        self._announced: set[str] = set()  # sources
        self._retained: dict[str, bytes] = {}  # by topic
        self._lasting: dict[str, set[int]] = {}  # numbers of events under way, by the topic of their label
        self._was_connected = False
        name = shown_server(address)
        self._outage = FailureReporter(name, report)
        client.will_set(f"{self._prefix}/online", "0", qos=1, retain=True)
        client.max_queued_messages_set(waiting)
        client.reconnect_delay_set(int(Backoff.FIRST_S), int(Backoff.MAX_S))  # the client doubles its pauses itself
        client.connect_timeout = self.CONNECT_S
        client.suppress_exceptions = True  # of ``report``, which would end the client's thread
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.connect_async(host, port or (8883 if tls else 1883), self.KEEPALIVE_S)
        client.loop_start()
        super().__init__(name, waiting, report)

    def process(self, message: Message) -> None:
        """Hand one message to the client; a window is dropped and counted while there is no broker."""
        if isinstance(message, Rules):
            self._use_rules(message)
        if not isinstance(message, (Window, Event, Notice)):
            return
        body = to_line(message.to_json()).encode(errors="backslashreplace")
        topic = f"{self._prefix}/{self._names.of(message.source)}"
        if isinstance(message, Event):
            self._publish(f"{topic}/event", body, qos=1)
            if self._discovery is not None:
                self._show_active(topic, message, body)
        elif isinstance(message, Notice):
            self._announce(message.source)
            self._retain(f"{topic}/status", body)
        elif self._client.is_connected():
            self._publish(f"{topic}/window", body, qos=0)
        else:
            self.dropped += 1
        self.idle()

    def _show_active(self, topic: str, event: Event, body: bytes) -> None:
        """Publish whether any event of a label lasts in a source: several rules may have the same label."""
        state = active_topic(topic, event.label)
        lasting = self._lasting.setdefault(state, set())
        if event.kind == "start":
            lasting.add(event.number)
        else:
            lasting.discard(event.number)
        self._retain(f"{state}/event", body)
        self._retain(state, b"ON" if lasting else b"OFF")

    def _use_rules(self, message: Rules) -> None:
        """Describe the sensors of the labels that have rules now, and withdraw those of all other labels."""
        labels = tuple(dict.fromkeys(rule.label for rule in message.rules))
        if self._discovery is None or not labels:
            return
        old, self._discovery = self._discovery, replace(self._discovery, labels=labels)
        for source in self._announced:
            name = self._names.of(source)
            for label in set(old.labels) - set(labels):
                topic, _ = old.sensor(self._prefix, name, label, source)
                self._retain(topic, b"")
                del self._retained[topic]
            self._announce(source)

    def _announce(self, source: str) -> None:
        """Describe a source's sensors, once; they are off until an event starts."""
        if self._discovery is None:
            return
        self._announced.add(source)
        name = self._names.of(source)
        for label in self._discovery.labels:
            topic, about = self._discovery.sensor(self._prefix, name, label, source)
            if topic not in self._retained:
                self._retain(topic, about)
                self._retain(active_topic(f"{self._prefix}/{name}", label), b"OFF")

    def _retain(self, topic: str, body: bytes) -> None:
        self._retained[topic] = body  # first: a connection that is made now publishes it
        if self._client.is_connected():
            self._publish(topic, body, qos=1, retain=True)

    def idle(self) -> None:
        """Note that the broker is connected."""
        if self._client.is_connected():
            self._outage.worked()

    def _publish(self, topic: str, body: bytes, *, qos: int, retain: bool = False) -> MQTTMessageInfo:
        from paho.mqtt.enums import MQTTErrorCode

        sent: MQTTMessageInfo = self._client.publish(topic, body, qos, retain)
        if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE and retain:  # states must not wait behind events
            sent = self._client.publish(topic, body, 0, retain)
        kept = sent.rc == MQTTErrorCode.MQTT_ERR_NO_CONN and qos > 0  # waits in the client
        if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and not kept:
            self.dropped += 1
        return sent

    def finish(self) -> None:
        """Publish that the run is offline, and end the client."""
        if self._client.is_connected():
            # It is queued behind all other messages: once it has arrived, so have they.
            last = self._publish(f"{self._prefix}/online", b"0", qos=1, retain=True)
            with suppress(ValueError, RuntimeError):
                last.wait_for_publish(self.FAREWELL_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if reason.is_failure:
            self._outage.failed(f"the broker refuses the connection ({str(reason).lower()}): retrying")
            return
        self._was_connected = True
        self._publish(f"{self._prefix}/online", b"1", qos=1, retain=True)
        for topic, body in list(self._retained.items()):  # a broker that was restarted may have lost them
            self._publish(topic, body, qos=1, retain=True)

    def _on_connect_fail(self, *_: Any) -> None:
        self._outage.failed("the broker cannot be reached: retrying")

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        was_connected, self._was_connected = self._was_connected, False
        if was_connected and reason.is_failure:
            self._outage.failed("the connection to the broker is lost: retrying")


def _prefix(address: str, path: str) -> str:
    """Return the prefix of all topics. Raises ``UsageError`` that does not repeat the address."""
    prefix = path.strip("/") or DEFAULT_PREFIX
    if re.search("[?#]", address) and (hint := encoding_hint(address)):
        raise UsageError(f"a broker's address cannot be parsed{hint}")
    if re.search(r"[+#\0]", prefix) or re.search("[?#]", address) or prefix.startswith("$"):
        raise UsageError("an MQTT topic must not contain + # ?, nor begin with $: change the path of the address")
    if len(prefix.encode(errors="replace")) > MAX_PREFIX_BYTES:
        raise UsageError(
            f"an MQTT topic must have at most {MAX_PREFIX_BYTES} bytes: shorten the path of the broker's address"
        )
    return prefix


def _new_client() -> Any:
    """Return a client of paho-mqtt. Raises ``MissingExtraError`` if that is not installed."""
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise MissingExtraError("publishing to an MQTT broker", "mqtt", "paho-mqtt") from None
    return Client(CallbackAPIVersion.VERSION2, client_id=f"adafocus-{uuid4().hex[:12]}")
