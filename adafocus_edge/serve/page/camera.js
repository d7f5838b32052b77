// This browser's camera as a source: pictures are taken at the rate the model needs, and sent one by one.

import { ask, say, still } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 480;
const QUALITY = 0.82;
const IN_FLIGHT = 2;
const FAILURES = 8; // In a row; a short break of the line is bridged.
const SETTLE_MS = 1500; // What is under way when the camera is stopped gets this long.

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
    if (this.page.hello.most_cameras === 0) this.forbid("This server takes no browser cameras.");
    else if (!isSecureContext || !navigator.mediaDevices) {
      this.forbid("Browsers give their camera to pages from localhost or over HTTPS only.");
    }
  }

  forbid(text) {
    this.button.disabled = true;
    this.tell(text);
  }

  tell(text, bad = false) {
    say(this.note, text);
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
      for (const track of this.stream.getTracks()) track.addEventListener("ended", () => this.stop("The camera has ended.", true));
      say(this.button.querySelector("span"), "Stop the camera");
      this.tell(`Sent as “${source}”, ${this.page.hello.camera_fps} pictures per second.`);
      this.timer = setInterval(() => this.capture(), 1000 / this.page.hello.camera_fps);
      this.page.expect(source, !still());
    } catch (error) {
      this.close(this.release());
      const refused = { NotAllowedError: "The browser was not allowed to use its camera.", NotFoundError: "This browser has no camera." };
      this.tell(refused[error.name] ?? `The camera cannot be used: ${error.message}`, true);
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
          if (this.id === id && (error.status === 404 || this.failed >= FAILURES)) this.stop(`Stopped: ${error.message}`, true);
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
    this.tell(text, bad);
    if (id === null) return;
    // Nothing should be asked of a source that is gone.
    const card = this.page.cards.get(this.source);
    if (card) card.leaving = true;
    const until = Date.now() + SETTLE_MS;
    while ((this.flying > 0 || card?.asking) && Date.now() < until) await new Promise((resume) => setTimeout(resume, 20));
    this.close(id);
  }

  /** Let the server close it, also while the page is left; one that is closed already is as well. */
  close(id) {
    if (id === null) return;
    fetch(`/api/cameras/${encodeURIComponent(id)}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  /** Let the camera itself go; return what the server knows it by. */
  release() {
    clearInterval(this.timer);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
    const { id } = this;
    this.id = null;
    say(this.button.querySelector("span"), "Use this browser’s camera");
    return id;
  }
}
