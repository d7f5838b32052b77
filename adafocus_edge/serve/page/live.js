// The connection for live data; it reconnects for as long as the page is open.

const KINDS = ["hello", "look", "window", "event", "notice", "status"];
const SILENT_MS = 6000; // The server sends a status every second.
const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 8000;

export class Live {
  /** `take(kind, entry)` is called for each message, `changed(connected)` when the connection opens or is lost. */
  constructor(take, changed) {
    this.take = take;
    this.changed = changed;
    this.pauseMs = FIRST_PAUSE_MS;
    this.heardMs = Date.now();
    setInterval(() => this.check(), 1000);
    this.open();
  }

  open() {
    this.retry = null;
    this.heardMs = Date.now();
    const stream = (this.stream = new EventSource("/api/live"));
    for (const kind of KINDS) {
      stream.addEventListener(kind, (message) => {
        if (stream !== this.stream) return;
        this.heardMs = Date.now();
        this.take(kind, JSON.parse(message.data));
        if (kind === "hello") {
          this.pauseMs = FIRST_PAUSE_MS;
          this.changed(true);
        }
      });
    }
    stream.addEventListener("error", () => {
      if (stream === this.stream) this.lost();
    });
  }

  check() {
    if (!this.retry && Date.now() - this.heardMs > SILENT_MS) this.lost();
  }

  async lost() {
    this.stream.close();
    this.stream = null;
    this.changed(false);
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.again(), this.pauseMs);
    this.pauseMs = Math.min(2 * this.pauseMs, MAX_PAUSE_MS);
  }

  async again() {
    try {
      // An EventSource does not report why it was refused: the login may have expired, or the server was restarted.
      const answer = await fetch("/api/status", { signal: AbortSignal.timeout(5000) });
      if (answer.status === 401) return location.assign("/login");
      this.open();
    } catch {
      this.retry = setTimeout(() => this.again(), this.pauseMs);
      this.pauseMs = Math.min(2 * this.pauseMs, MAX_PAUSE_MS);
    }
  }
}
