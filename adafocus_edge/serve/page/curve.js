// The chart of confidence: the last two minutes, with window ends as ticks, events as shaded spans with a flag, and the
// values at the time that a pointer or the arrow keys choose.

import { clock, colourOf, make, percent } from "./dom.js";

const SHOWN = 3; // Classes with a curve of their own.
const LEFT = 30;
const BOTTOM = 16;
const TOP = 8;
const FLAG = 5;
const GAP_S = 6; // The curve is interrupted where points are further apart.
const BACK_S = 5; // A clock that goes back by more was set: the chart begins again.
const JUMP_S = 10; // Of the page keys.

export class Curve {
  /** `open(event)` is called for an event that a person chooses. */
  constructor(element, name, open) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.readout = element.querySelector(".readout");
    this.open = open;
    this.points = [];
    this.windows = [];
    this.events = new Map();
    this.spanS = 120;
    this.nowS = 0;
    this.labels = [];
    this.chosenS = null; // Time of the point whose values are shown.
    element.setAttribute("aria-label", `Confidence of ${name} over time`);
    element.addEventListener("pointermove", (event) => this.choose(this.timeAt(event)));
    element.addEventListener("pointerdown", (event) => this.choose(this.timeAt(event)));
    element.addEventListener("pointerleave", () => this.choose(null));
    element.addEventListener("click", () => this.openChosen());
    element.addEventListener("focus", () => {
      if (element.matches(":focus-visible")) this.choose(this.points.at(-1)?.t ?? null);
    });
    element.addEventListener("blur", () => this.choose(null));
    element.addEventListener("keydown", (event) => this.key(event));
  }

  add(point) {
    if (point.t < (this.points.at(-1)?.t ?? 0) - BACK_S) this.clear();
    this.points.push(point);
    this.trim(point.t);
  }

  trim(nowS) {
    const from = nowS - this.spanS - GAP_S;
    while (this.points.length && this.points[0].t < from) this.points.shift();
    while (this.windows.length && this.windows[0] < from) this.windows.shift();
    for (const [id, { to }] of this.events) if (to !== null && to < from) this.events.delete(id);
  }

  event(entry) {
    this.events.set(entry.id, { from: entry.start_wall_s, to: entry.event === "end" ? entry.wall_s : null, entry });
  }

  /** Forget everything, before the server's own memory is shown. */
  clear() {
    this.points = [];
    this.windows = [];
    this.chosenS = null;
    this.events.clear();
  }

  // -- the chosen time ------------------------------------------------------------------------------------------------

  timeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.nowS - this.spanS + ((event.clientX - box.left - LEFT) / (box.width - LEFT)) * this.spanS;
  }

  /** Show the values of the point nearest to a time; of none for null, or where there is no data. */
  choose(wallS) {
    const near = wallS === null ? null : this.points[this.nearest(wallS)];
    this.chosenS = near && Math.abs(near.t - wallS) <= GAP_S ? near.t : null;
    this.draw(this.nowS, this.labels);
  }

  nearest(wallS) {
    let best = -1;
    this.points.forEach(({ t }, place) => {
      if (best < 0 || Math.abs(t - wallS) < Math.abs(this.points[best].t - wallS)) best = place;
    });
    return best;
  }

  key(event) {
    if (event.key === "Escape" && this.chosenS !== null) {
      this.choose(null);
    } else if (event.key === "Enter" && this.chosenEvent()) {
      this.openChosen();
    } else if (this.points.length) {
      const last = this.points.length - 1;
      const place = this.chosenS === null ? last : this.nearest(this.chosenS);
      const at = this.points[place].t;
      const to = {
        ArrowLeft: () => place - 1, ArrowDown: () => place - 1, ArrowRight: () => place + 1, ArrowUp: () => place + 1,
        PageDown: () => this.nearest(at - JUMP_S), PageUp: () => this.nearest(at + JUMP_S), Home: () => 0, End: () => last,
      }[event.key];
      if (!to) return;
      this.choose(this.points[Math.max(0, Math.min(last, to()))].t);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Return the event under way at the chosen time, the newest if there are several. */
  chosenEvent() {
    if (this.chosenS === null) return null;
    const found = [...this.events.values()].filter(({ from, to }) => from <= this.chosenS && this.chosenS <= (to ?? Infinity));
    return found.at(-1)?.entry ?? null;
  }

  openChosen() {
    const entry = this.chosenEvent();
    if (entry) this.open(entry);
  }

  showReadout(x) {
    const { readout, element } = this;
    const point = this.chosenS === null ? null : this.points[this.nearest(this.chosenS)];
    const shown = point ?? this.points.at(-1);
    const event = this.chosenEvent();
    const values = shown?.top.map(([id, share]) => `${this.labels[id]} ${percent(share)}`).join(", ");
    element.setAttribute("aria-valuemin", -this.spanS);
    element.setAttribute("aria-valuenow", shown ? Math.round(Math.max(-this.spanS, Math.min(0, shown.t - this.nowS))) : 0);
    const when = point || (shown && this.nowS - shown.t > GAP_S) ? clock(shown.t) : "Now";
    const text = shown ? `${when}: ${values}${event ? `; event ${event.label}` : ""}` : "No data yet";
    if (element.getAttribute("aria-valuetext") !== text) element.setAttribute("aria-valuetext", text);
    element.classList.toggle("on-event", event !== null);
    readout.hidden = !point;
    if (!point) return;
    readout.replaceChildren(make("b", "", clock(point.t)), ...point.top.map(([id, share]) => {
      const row = make("span", "class", "", make("span", "", this.labels[id]), make("b", "", percent(share)));
      row.style.setProperty("--colour", colourOf(id));
      return row;
    }));
    if (event) readout.append(make("span", "event", `Event: peak ${percent(event.peak)}. Click to open`));
    const right = x > this.canvas.clientWidth / 2;
    readout.style.left = right ? "" : `${x + 8}px`;
    readout.style.right = right ? `${this.canvas.clientWidth - x + 8}px` : "";
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  /** Return the classes with the highest mean confidence over the time shown. */
  leaders() {
    const sums = new Map();
    for (const { top } of this.points) for (const [id, share] of top) sums.set(id, (sums.get(id) ?? 0) + share);
    return [...sums].sort((a, b) => b[1] - a[1]).slice(0, SHOWN).map(([id]) => id);
  }

  draw(nowS, labels) {
    this.nowS = nowS;
    this.labels = labels;
    if (this.chosenS !== null && this.chosenS < nowS - this.spanS) this.chosenS = null;
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    const x = (t) => LEFT + ((t - nowS + this.spanS) / this.spanS) * (width - LEFT - 1);
    this.showReadout(x(this.chosenS));
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `10px ${style.fontFamily}`;
    const space = {
      pen, width, height, x,
      y: (share) => TOP + (1 - share) * (height - TOP - BOTTOM),
      colour: (name) => style.getPropertyValue(name).trim(),
    };
    this.drawAxes(space);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT, height);
    pen.clip();
    this.drawEvents(space);
    this.drawWindows(space);
    const leaders = this.leaders();
    for (const id of [...leaders].reverse()) this.drawClass(space, id, id === leaders[0] ? 2 : 1.5);
    this.drawChosen(space);
    pen.restore();
  }

  drawAxes({ pen, width, height, x, y, colour }) {
    pen.lineWidth = 1;
    pen.fillStyle = colour("--muted");
    pen.strokeStyle = colour("--line");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) {
      pen.beginPath();
      pen.moveTo(LEFT, Math.round(y(share)) + 0.5);
      pen.lineTo(width, Math.round(y(share)) + 0.5);
      pen.stroke();
      pen.fillText(`${share * 100}`, LEFT - 6, y(share));
    }
    pen.textBaseline = "alphabetic";
    const marks = [[this.spanS, `${this.spanS} s ago`, "left"], [this.spanS / 2, `${this.spanS / 2} s`, "center"], [0, "now", "right"]];
    for (const [backS, text, align] of marks) {
      pen.textAlign = align;
      pen.fillText(text, x(this.nowS - backS), height - 2);
    }
  }

  drawEvents({ pen, x, y, colour }) {
    for (const { from, to, entry } of this.events.values()) {
      const left = x(from);
      const wide = Math.max(2, x(to ?? this.nowS) - left);
      pen.fillStyle = colour("--event");
      pen.fillRect(left, TOP, wide, y(0) - TOP);
      pen.fillStyle = colour(variableOf(Math.max(0, this.labels.indexOf(entry.label))));
      pen.fillRect(left, TOP - 1, wide, 2);
      pen.beginPath();
      pen.moveTo(left, TOP - 1 - FLAG);
      pen.lineTo(left + 2 * FLAG, TOP - 1 - FLAG / 2);
      pen.lineTo(left, TOP + 1);
      pen.fill();
    }
  }

  drawWindows({ pen, x, y, colour }) {
    pen.strokeStyle = colour("--line-strong");
    for (const t of this.windows) {
      pen.beginPath();
      pen.moveTo(Math.round(x(t)) + 0.5, y(0));
      pen.lineTo(Math.round(x(t)) + 0.5, y(0) - 6);
      pen.stroke();
    }
  }

  drawClass({ pen, x, y, colour }, id, wide) {
    pen.strokeStyle = colour(variableOf(id));
    pen.lineWidth = wide;
    pen.lineJoin = "round";
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

  drawChosen({ pen, x, y, colour }) {
    if (this.chosenS === null) return;
    const at = x(this.chosenS);
    pen.strokeStyle = colour("--text");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(Math.round(at) + 0.5, TOP);
    pen.lineTo(Math.round(at) + 0.5, y(0));
    pen.stroke();
    for (const [id, share] of this.points[this.nearest(this.chosenS)].top) {
      pen.fillStyle = colour(variableOf(id));
      pen.beginPath();
      pen.arc(at, y(share), 3, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}

/** Return the name of the style's variable that holds a class's colour. */
function variableOf(classId) {
  return colourOf(classId).slice(4, -1);
}
