// The confidence curve: the last two minutes, with window ends as ticks and events as shaded spans.

import { colourOf } from "./dom.js";

const SHOWN = 3; // Classes with a curve of their own.
const LEFT = 30;
const BOTTOM = 16;
const TOP = 6;
const GAP_S = 6; // The curve is interrupted where points are further apart.

export class Curve {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    this.windows = [];
    this.events = new Map();
    this.spanS = 120;
  }

  add(point) {
    this.points.push(point);
    this.trim(point.t);
  }

  trim(nowS) {
    const from = nowS - this.spanS - GAP_S;
    while (this.points.length && this.points[0].t < from) this.points.shift();
    while (this.windows.length && this.windows[0] < from) this.windows.shift();
    for (const [id, event] of this.events) if (event.to !== null && event.to < from) this.events.delete(id);
  }

  event(entry) {
    this.events.set(entry.id, { from: entry.start_wall_s, to: entry.event === "end" ? entry.wall_s : null });
  }

  /** Return the classes with the highest mean confidence over the time shown. */
  leaders() {
    const sums = new Map();
    for (const { top } of this.points) for (const [id, share] of top) sums.set(id, (sums.get(id) ?? 0) + share);
    return [...sums].sort((a, b) => b[1] - a[1]).slice(0, SHOWN).map(([id]) => id);
  }

  draw(nowS, labels) {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const colours = getComputedStyle(canvas);
    const colour = (name) => colours.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `10px ${colours.fontFamily}`;
    const x = (t) => LEFT + ((t - nowS + this.spanS) / this.spanS) * (width - LEFT - 1);
    const y = (share) => TOP + (1 - share) * (height - TOP - BOTTOM);

    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT, height);
    pen.clip();
    pen.fillStyle = colour("--event");
    for (const { from, to } of this.events.values()) {
      const wide = Math.max(2, x(to ?? nowS) - x(from));
      pen.fillRect(x(from), TOP, wide, height - TOP - BOTTOM);
      pen.fillRect(x(from), TOP, wide, 3);
    }
    pen.restore();

    pen.lineWidth = 1;
    pen.fillStyle = colour("--muted");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) {
      pen.strokeStyle = colour("--line");
      pen.beginPath();
      pen.moveTo(LEFT, Math.round(y(share)) + 0.5);
      pen.lineTo(width, Math.round(y(share)) + 0.5);
      pen.stroke();
      pen.fillText(`${share * 100}`, LEFT - 6, y(share));
    }
    pen.textBaseline = "alphabetic";
    for (const [backS, text, align] of [[this.spanS, `${this.spanS} s ago`, "left"], [this.spanS / 2, `${this.spanS / 2} s`, "center"], [0, "now", "right"]]) {
      pen.textAlign = align;
      pen.fillText(text, x(nowS - backS), height - 2);
    }

    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT, height);
    pen.clip();
    pen.strokeStyle = colour("--line-strong");
    for (const t of this.windows) {
      pen.beginPath();
      pen.moveTo(Math.round(x(t)) + 0.5, y(0));
      pen.lineTo(Math.round(x(t)) + 0.5, y(0) - 6);
      pen.stroke();
    }
    pen.lineJoin = "round";
    const leaders = this.leaders();
    for (const id of [...leaders].reverse()) {
      pen.strokeStyle = colour(colourOf(id).slice(4, -1));
      pen.lineWidth = id === leaders[0] ? 2 : 1.5;
      pen.beginPath();
      let last = null;
      for (const { t, top } of this.points) {
        const found = top.find(([other]) => other === id);
        if (!found) {
          last = null;
          continue;
        }
        if (last === null || t - last > GAP_S) pen.moveTo(x(t), y(found[1]));
        else pen.lineTo(x(t), y(found[1]));
        last = t;
      }
      pen.stroke();
    }
    pen.restore();

    const newest = this.points.at(-1);
    const values = newest ? newest.top.map(([id, share]) => `${labels[id]} ${Math.round(share * 100)} %`).join(", ") : "no data yet";
    const when = newest && nowS - newest.t > GAP_S ? "last" : "now";
    canvas.setAttribute("aria-label", `Confidence over the last ${this.spanS} seconds; ${when} ${values}`);
  }
}
