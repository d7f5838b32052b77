// The card of one stream: its picture with the moving patch, the current result, and counters.

import { Curve } from "./curve.js";
import { PATCH_COLOUR, clock, count, make, percent, setText, seconds, showBars, signIn, reducedMotion, without } from "./dom.js";

const GLIDE_MS = 180;
const STALE_COLOUR = "#a9b1ba"; // Of the patch if the result is out of date.
const SLOW_MS = 2000; // Interval of picture requests if no new picture is expected.
const NAMES = { connecting: "Connecting", running: "Live", lost: "Reconnecting", ended: "Ended", failed: "Failed" };

export class Card {
  constructor(name, page) {
    this.name = name;
    this.page = page;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.element.dataset.source = name;
    this.find = (selector) => this.element.querySelector(selector);
    const title = this.find(".name");
    title.textContent = name;
    title.title = name;
    this.element.setAttribute("aria-label", name);
    this.picture = this.find(".picture");
    this.overlay = this.find(".overlay");
    this.picture.setAttribute("aria-label", `Picture of ${name}`);
    this.curve = new Curve(this.find(".chart"), name, (entry) => page.openEvent(entry));
    this.curve.spanS = page.hello.curve_s;
    this.paused = false;
    this.visible = true;
    this.gone = false;
    this.leaving = false; // Whether this page is closing the source.
    this.loading = false;
    this.index = -1;
    this.renewals = 0;
    this.over = false; // Whether the source has ended: another may take its name.
    this.state = "connecting";
    this.stale = false; // Whether the last result is out of date.
    this.seenS = null;
    this.framedS = null; // Time of the newest frame.
    this.box = null;
    this.crop = null;
    this.dirty = false;
    this.watch = new IntersectionObserver(([entry]) => (this.visible = entry.isIntersecting), { rootMargin: "200px" });
    this.watch.observe(this.element);
    this.resize = new ResizeObserver(() => {
      this.drawOverlay();
      this.curve.draw(page.nowS(), page.labels);
    });
    this.resize.observe(this.find(".stage"));
    this.find(".pause").addEventListener("click", () => this.pause(!this.paused));
    this.find(".enlarge").addEventListener("click", () => page.enlarge(this));
    this.find(".fullscreen").addEventListener("click", () => page.toggleFullScreen());
    this.find(".stage").addEventListener("click", () => page.enlarge(this));
    this.pictures();
  }

  /** Forget the picture and the results: another source has taken the name. */
  renew() {
    this.renewals += 1;
    this.over = false;
    this.index = -1;
    this.box = this.newest = null;
    this.curve.clear();
    delete this.picture.dataset.frame;
    delete this.overlay.dataset.box;
    this.picture.getContext("2d").clearRect(0, 0, this.picture.width, this.picture.height);
    this.picture.setAttribute("aria-label", `Picture of ${this.name}`);
    setText(this.find(".label"), "–");
    this.find(".label").title = "";
    for (const place of [".confidence", ".standing"]) setText(this.find(place), "");
    for (const place of [".progress", ".bars"]) this.find(place).replaceChildren();
    this.drawOverlay();
    this.showNote();
  }

  remove() {
    this.gone = true;
    this.watch.disconnect();
    this.resize.disconnect();
    this.element.remove();
  }

  // -- the picture ----------------------------------------------------------------------------------------------------

  pause(paused) {
    this.paused = paused;
    const button = this.find(".pause");
    button.setAttribute("aria-pressed", String(paused));
    button.setAttribute("aria-label", paused ? "Resume the picture" : "Pause the picture");
    button.title = button.getAttribute("aria-label");
    this.showNote();
  }

  showNote() {
    const note = this.find(".note");
    const last = this.state !== "running" && this.framedS !== null && this.index >= 0;
    note.hidden = !this.paused && !last && this.index >= 0;
    const age = last && seconds(Math.max(0, Math.round(this.page.nowS() - this.framedS)));
    setText(note, this.paused ? "Picture paused" : last ? `Last picture ${clock(this.framedS)}, ${age} ago` : "No picture yet");
  }

  /** Request one picture after another: a slow connection gets fewer pictures, but never old ones. */
  async pictures() {
    const address = `/api/streams/${encodeURIComponent(this.name)}/picture.jpg`;
    while (!this.gone) {
      const begun = performance.now();
      let pauseMs = 1000 / this.page.pictureFps();
      if (this.state !== "running" && this.index >= 0) pauseMs = SLOW_MS;
      if (!this.paused && !this.leaving && this.visible && !document.hidden && this.page.connected) {
        this.loading = true;
        const { renewals } = this;
        try {
          const answer = await fetch(`${address}?after=${this.index}`, { signal: AbortSignal.timeout(10000) });
          if (answer.status === 200) await this.show(await answer.blob(), Number(answer.headers.get("X-Frame-Index")), renewals);
          else if (answer.status === 401) signIn();
          else if (answer.status !== 204) pauseMs = SLOW_MS;
        } catch {
          pauseMs = SLOW_MS; // The banner reports a lost connection.
        }
        this.loading = false;
      }
      await new Promise((resume) => setTimeout(resume, Math.max(10, pauseMs - (performance.now() - begun))));
    }
  }

  async show(blob, index, renewals) {
    const image = await createImageBitmap(blob);
    if (this.gone || this.paused || renewals !== this.renewals) return;
    if (this.picture.width !== image.width || this.picture.height !== image.height) {
      this.picture.width = image.width;
      this.picture.height = image.height;
      this.drawOverlay();
    }
    this.picture.getContext("2d").drawImage(image, 0, 0);
    image.close();
    const first = this.index < 0;
    this.index = index;
    this.picture.dataset.frame = String(index);
    if (first) {
      this.showNote();
      this.drawOverlay();
    }
  }

  /** Move the patch to its new position; without animation if the user prefers reduced motion. */
  moveTo(box) {
    const from = this.box?.at ?? box;
    this.box = { from, to: box, at: from, begun: performance.now() };
    this.overlay.dataset.box = box.join(",");
    if (reducedMotion() || document.hidden) {
      this.box.at = box;
      this.drawOverlay();
      return;
    }
    if (!this.gliding) this.gliding = requestAnimationFrame(() => this.glide());
  }

  glide() {
    if (!this.box) {
      this.gliding = null;
      return;
    }
    const { from, to, begun } = this.box;
    const share = Math.min(1, (performance.now() - begun) / GLIDE_MS);
    const eased = 1 - (1 - share) ** 3;
    this.box.at = to.map((value, side) => from[side] + (value - from[side]) * eased);
    this.drawOverlay();
    this.gliding = share < 1 && !this.gone ? requestAnimationFrame(() => this.glide()) : null;
  }

  drawOverlay() {
    const { overlay, picture } = this;
    const ratio = devicePixelRatio || 1;
    const width = overlay.clientWidth;
    const height = overlay.clientHeight;
    if (overlay.width !== Math.round(width * ratio) || overlay.height !== Math.round(height * ratio)) {
      overlay.width = Math.round(width * ratio);
      overlay.height = Math.round(height * ratio);
    }
    const pen = overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (this.index < 0) return;
    // The picture is centred in its stage, as large as fits.
    const scale = Math.min(width / picture.width, height / picture.height);
    const left = (width - picture.width * scale) / 2;
    const top = (height - picture.height * scale) / 2;
    const place = ([l, t, r, b]) => [
      left + l * picture.width * scale, top + t * picture.height * scale,
      (r - l) * picture.width * scale, (b - t) * picture.height * scale,
    ];
    if (this.crop && this.crop.some((side, number) => Math.abs(side - (number < 2 ? 0 : 1)) > 0.01)) {
      const [x, y, w, h] = place(this.crop);
      pen.fillStyle = "rgba(5, 7, 10, 0.38)";
      pen.beginPath();
      pen.rect(left, top, picture.width * scale, picture.height * scale);
      pen.rect(x, y, w, h);
      pen.fill("evenodd");
      pen.strokeStyle = "rgba(255, 255, 255, 0.55)";
      pen.lineWidth = 1;
      pen.setLineDash([5, 4]);
      pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
      pen.setLineDash([]);
    }
    if (this.box) {
      const [x, y, w, h] = place(this.box.at);
      pen.strokeStyle = "rgba(5, 7, 10, 0.55)";
      pen.lineWidth = 4;
      pen.strokeRect(x, y, w, h);
      pen.strokeStyle = this.stale ? STALE_COLOUR : PATCH_COLOUR;
      pen.lineWidth = 2;
      pen.strokeRect(x, y, w, h);
    }
  }

  // -- the result -----------------------------------------------------------------------------------------------------

  look(entry) {
    this.setStale(false, null);
    this.curve.add({ t: entry.wall_s, top: entry.top.slice(0, 3).map((guess) => [guess.class_id, guess.confidence]) });
    this.recall(entry);
  }

  /** Show a provisional result that the curve contains already. */
  recall(entry) {
    this.newest = entry;
    if (entry.box) this.moveTo(entry.box);
    if (this.dirty) return;
    this.dirty = true;
    // Update at most ten times per second, which is as fast as one can read.
    setTimeout(() => {
      this.dirty = false;
      this.showLook();
    }, 100);
  }

  showLook() {
    const entry = this.newest;
    if (!entry || this.gone) return;
    const segments = this.page.model.segments;
    setText(this.find(".label"), entry.label);
    this.find(".label").title = entry.label;
    setText(this.find(".confidence"), percent(entry.confidence));
    this.showStanding();
    const progress = this.find(".progress");
    while (progress.children.length < segments) progress.append(make("i"));
    [...progress.children].forEach((tick, step) => tick.classList.toggle("done", step <= entry.step));
    showBars(this.find(".bars"), entry.top.slice(0, 5), this.page.labels.length);
    this.curve.draw(this.page.nowS(), this.page.labels);
  }

  setStale(stale, seenAt) {
    const changed = this.stale !== stale;
    this.stale = stale;
    this.seenS = seenAt === null ? null : Date.parse(seenAt) / 1000;
    this.element.classList.toggle("stale", stale);
    if (changed) this.drawOverlay();
    if (changed || stale) this.showStanding();
  }

  /** Show whether the result is settled; if it is out of date, when it was reached. */
  showStanding() {
    const entry = this.newest;
    if (!entry) return;
    const seenS = this.seenS ?? entry.wall_s;
    const ago = seconds(Math.max(0, Math.round(this.page.nowS() - seenS)));
    const standing = this.stale ? `as of ${clock(seenS)}, ${ago} ago` : entry.settled ? "settled" : "forming";
    setText(this.find(".standing"), standing);
    const result = `${entry.label}, ${percent(entry.confidence)}${this.stale ? `, ${standing}` : ""}`;
    this.picture.setAttribute("aria-label", `Picture of ${this.name}: ${result}`);
  }

  // -- state and counters ---------------------------------------------------------------------------------------------

  status(source) {
    if (this.over && source.state !== "ended") this.renew();
    this.state = source.state;
    this.element.dataset.state = source.state;
    const badge = this.find(".badge");
    badge.dataset.state = source.state;
    setText(badge, NAMES[source.state] ?? source.state);
    this.framedS = source.last_frame_age_s === null ? null : this.page.nowS() - source.last_frame_age_s;
    this.showNote();
    this.trouble(["lost", "failed"].includes(source.state) ? source.text : "");
    this.crop = source.crop;
    this.setStale(source.stale, source.last_seen_at);
    const number = (value, digits = 0) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
    this.counter("p50", number(source.latency_ms?.p50), "ms");
    this.counter("p95", number(source.latency_ms?.p95), "ms");
    this.counter("p99", number(source.latency_ms?.p99), "ms");
    this.counter("waiting", count(source.waiting));
    this.counter("fps_in", number(source.fps_in, 1), "fps");
    this.counter("fps_glimpsed", number(source.fps_glimpsed, 1), "fps");
    this.counter("dropped", count(source.dropped), source.dropping ? "too slow" : "", source.dropped > 0);
    this.counter("reconnects", count(source.reconnects), "", source.reconnects > 0);
    const damaged = source.damaged > 0 ? `, ${count(source.damaged)} damaged` : "";
    this.find(".counters").title = `${count(source.frames)} frames captured, ${count(source.glimpses)} processed${damaged}`;
    this.curve.trim(this.page.nowS());
    this.curve.draw(this.page.nowS(), this.page.labels);
  }

  trouble(text) {
    const line = this.find(".trouble");
    line.hidden = !text;
    setText(line, without(this.name, text));
  }

  counter(name, value, unit = "", alert = false) {
    const element = this.find(`[data-counter="${name}"]`);
    const shown = `${value} ${unit}`;
    if (element.dataset.value === shown) return;
    element.dataset.value = shown;
    element.textContent = value;
    if (unit && value !== "–") element.append(" ", make("small", "", unit));
    element.classList.toggle("alert", alert);
  }
}
