"""Events, windows and states published to an MQTT broker."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from uuid import uuid4

from adafocus_edge.errors import AdaFocusError, MissingExtraError, UsageError
from adafocus_edge.live.messages import Event, Message, Notice, Sink, Window, to_line
from adafocus_edge.live.sinks.server import split_server
from adafocus_edge.system.addresses import encoding_hint, shown_server
from adafocus_edge.system.retention import FailureReporter, SafeNames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paho.mqtt.client import MQTTMessageInfo


class Mqtt(Sink):
    """Publishes to an MQTT broker, as JSON, below a prefix: ``SOURCE/window``, ``SOURCE/event``, ``SOURCE/status``.

    Events and states arrive at least once (QoS 1), if need be after the broker is back; windows arrive at most once.
    States are retained, and so is ``online``: 1, and 0 once the run has ended or was cut off.

    Args:
        address: ``mqtt://user:password@host:port/topic/prefix``, or ``mqtts://`` for TLS; user, port and prefix may
            be left out.
        tell: takes one line about something that went wrong.
        ca_file: certificates to trust with ``mqtts://`` instead of the system's.
        waiting: messages that may wait, here and again in the client while the broker is away.

    Raises:
        UsageError: the address cannot be used.
        AdaFocusError: ``ca_file`` cannot be read.
        MissingExtraError: paho-mqtt is not installed.
    """

    wants = (Window, Event, Notice)
    KEEPALIVE_S = 20
    CONNECT_S = 5.0
    LONGEST_PAUSE_S = 60
    FAREWELL_S = 2.0
    """How long the end waits for the broker to have taken everything."""

    def __init__(
        self, address: str, tell: Callable[[str], None], *, ca_file: Path | None = None, waiting: int = 1000
    ) -> None:
        parts, host, port = split_server(address, "a broker's address", ("mqtt", "mqtts"))
        tls = parts.scheme == "mqtts"
        if ca_file is not None and not tls:
            raise UsageError("certificates are for mqtts:// only: begin the broker's address so, or leave them out")
        self._prefix = unquote(parts.path).strip("/") or "adafocus"
        if re.search("[?#]", address) and (hint := encoding_hint(address)):
            raise UsageError(f"a broker's address cannot be read{hint}")
        if re.search(r"[+#\0]", self._prefix) or re.search("[?#]", address) or self._prefix.startswith("$"):
            raise UsageError("an MQTT topic cannot hold + # ?, nor begin with $: change the path of the address")
        if len(self._prefix.encode(errors="replace")) > 1000:
            raise UsageError("an MQTT topic of more than 1000 bytes: shorten the path of the address")
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise MissingExtraError("publishing to an MQTT broker", "mqtt", "paho-mqtt") from None
        client = self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"adafocus-{uuid4().hex[:12]}")
        if parts.username is not None:
            client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if tls:
            try:
                client.tls_set(None if ca_file is None else str(ca_file))
            except OSError as error:
                raise AdaFocusError(f"{ca_file}: no certificates to trust ({error.strerror or error})") from None
        self._names = SafeNames()
        self._status: dict[str, bytes] = {}
        self._was_connected = False
        name = shown_server(address)
        self._outage = FailureReporter(name, tell)
        client.will_set(f"{self._prefix}/online", "0", qos=1, retain=True)
        client.max_queued_messages_set(waiting)
        client.reconnect_delay_set(1, self.LONGEST_PAUSE_S)
        client.connect_timeout = self.CONNECT_S
        client.suppress_exceptions = True  # of ``tell``, which would end the client's thread
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.connect_async(host, port or (8883 if tls else 1883), self.KEEPALIVE_S)
        client.loop_start()
        super().__init__(name, waiting, tell)

    def process(self, message: Message) -> None:
        """Hand one message to the client; drops and counts a window that the broker is not there for."""
        if not isinstance(message, (Window, Event, Notice)):
            return
        body = to_line(message.to_json()).encode(errors="backslashreplace")
        topic = f"{self._prefix}/{self._names.of(message.source)}"
        if isinstance(message, Event):
            self._publish(f"{topic}/event", body, qos=1)
        elif isinstance(message, Notice):
            self._status[f"{topic}/status"] = body  # first: whoever connects now publishes it
            if self._client.is_connected():
                self._publish(f"{topic}/status", body, qos=1, retain=True)
        elif self._client.is_connected():
            self._publish(f"{topic}/window", body, qos=0)
        else:
            self.dropped += 1
        self.idle()

    def idle(self) -> None:
        """Note that the broker is there."""
        if self._client.is_connected():
            self._outage.worked()

    def _publish(self, topic: str, body: bytes, *, qos: int, retain: bool = False) -> MQTTMessageInfo:
        from paho.mqtt.enums import MQTTErrorCode

        told = self._client.publish(topic, body, qos, retain)
        if told.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE and retain:  # states must not wait behind events
            told = self._client.publish(topic, body, 0, retain)
        kept = told.rc == MQTTErrorCode.MQTT_ERR_NO_CONN and qos > 0  # waits in the client
        if told.rc != MQTTErrorCode.MQTT_ERR_SUCCESS and not kept:
            self.dropped += 1
        return told

    def finish(self) -> None:
        """Say good-bye to the broker, and end the client."""
        if self._client.is_connected():
            # Queued behind all that waits: once it has arrived, so has everything.
            last = self._publish(f"{self._prefix}/online", b"0", qos=1, retain=True)
            with suppress(ValueError, RuntimeError):
                last.wait_for_publish(self.FAREWELL_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        if reason.is_failure:
            self._outage.failed(f"the broker refuses ({str(reason).lower()}): tried again")
            return
        self._was_connected = True
        self._publish(f"{self._prefix}/online", b"1", qos=1, retain=True)
        for topic, body in list(self._status.items()):  # a broker that was restarted may have forgotten them
            self._publish(topic, body, qos=1, retain=True)

    def _on_connect_fail(self, *_: Any) -> None:
        self._outage.failed("the broker cannot be reached: tried again")

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        lost, self._was_connected = self._was_connected, False
        if lost and reason.is_failure:
            self._outage.failed("the broker is gone: tried again")
