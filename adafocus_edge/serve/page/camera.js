// This browser's camera as a source: captures pictures at the rate that the model needs and uploads them.

import { ask, reducedMotion, setText } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 480;
const QUALITY = 0.82;
const IN_FLIGHT = 2;
const MAX_FAILURES = 8; // Consecutive; fewer are a short interruption of the connection.
const SETTLE_MS = 1500; // Time for uploads in progress when the camera is stopped.

export class Camera {
  constructor(page) {
    this.page = page;
    this.button = document.getElementById("camera");
    this.note = document.getElementById("camera-note");
    this.video = document.createElement("video");
    this.video.muted = true;
    this.video.playsInline = true;
    this.canvas = document.createElement("canvas");
    this.stream = null;
    this.id = null;
    this.button.addEventListener("click", () => (this.id === null ? this.start() : this.stop("")));
    addEventListener("pagehide", () => this.close(this.release()));
    this.check();
  }

  check() {
    if (this.page.hello.most_cameras === 0) this.forbid("Browser cameras are disabled on this server.");
    else if (!isSecureContext || !navigator.mediaDevices) {
      this.forbid("The browser's camera needs HTTPS or a page on localhost.");
    }
  }

  forbid(text) {
    this.button.disabled = true;
    this.setNote(text);
  }

  setNote(text, bad = false) {
    setText(this.note, text);
    this.note.classList.toggle("bad", bad);
  }

  async start() {
    this.button.disabled = true;
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: WIDTH }, height: { ideal: HEIGHT }, facingMode: "environment" },
        audio: false,
      });
      this.video.srcObject = this.stream;
      await this.video.play();
      const { id, source } = await ask("/api/cameras", { method: "POST" });
      this.id = id;
      this.source = source;
      this.number = 0;
      this.flying = 0;
      this.failed = 0;
      for (const track of this.stream.getTracks()) track.addEventListener("ended", () => this.stop("The camera was disconnected.", true));
      setText(this.button.querySelector("span"), "Stop the camera");
      this.setNote(`Streaming as “${source}” at ${this.page.hello.camera_fps} pictures per second.`);
      this.timer = setInterval(() => this.capture(), 1000 / this.page.hello.camera_fps);
      this.page.expect(source, !reducedMotion());
    } catch (error) {
      this.close(this.release());
      const known = { NotAllowedError: "Access to the camera was denied.", NotFoundError: "No camera was found." };
      this.setNote(known[error.name] ?? `Cannot use the camera: ${error.message}`, true);
    }
    this.button.disabled = false;
  }

  capture() {
    const { video, canvas, id } = this;
    if (this.flying >= IN_FLIGHT || video.videoWidth === 0) return;
    const scale = Math.min(1, WIDTH / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const number = this.number++;
    this.flying += 1;
    canvas.toBlob(
      async (blob) => {
        try {
          if (this.id !== id || !blob) return;
          const headers = { "Content-Type": "image/jpeg", "X-Frame-Number": String(number) };
          await ask(`/api/cameras/${encodeURIComponent(id)}/frame`, { method: "POST", headers, body: blob });
          this.failed = 0;
        } catch (error) {
          this.failed += 1;
          if (this.id === id && (error.status === 404 || this.failed >= MAX_FAILURES)) this.stop(`Stopped: ${error.message}`, true);
        } finally {
          this.flying -= 1;
        }
      },
      "image/jpeg",
      QUALITY,
    );
  }

  async stop(text, bad = false) {
    const id = this.release();
    this.setNote(text, bad);
    if (id === null) return;
    // Request nothing more of a source that is being closed.
    const card = this.page.cards.get(this.source);
    if (card) card.leaving = true;
    const until = Date.now() + SETTLE_MS;
    while ((this.flying > 0 || card?.asking) && Date.now() < until) await new Promise((resume) => setTimeout(resume, 20));
    this.close(id);
  }

  /** Close a camera on the server, even while the page is unloading. Errors are ignored: it may be closed already. */
  close(id) {
    if (id === null) return;
    fetch(`/api/cameras/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  /** Release the camera device; return its id on the server. */
  release() {
    clearInterval(this.timer);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
    const { id } = this;
    this.id = null;
    setText(this.button.querySelector("span"), "Use this browser’s camera");
    return id;
  }
}
