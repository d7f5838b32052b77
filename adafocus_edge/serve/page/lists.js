// The lists next to the streams: events and notices, results of finished windows, outputs. Newest first.

import { clock, colourOf, count, make, percent, setText, seconds, without } from "./dom.js";

const MAX_ROWS = 100;
const BACK = ["connected", "reconnected", "ended", "failed"]; // Notices that end the loss of a source.

function put(list, row) {
  const atTop = list.scrollTop < 8;
  list.prepend(row);
  while (list.children.length > MAX_ROWS) list.lastElementChild.remove();
  // Keep the scroll position of someone who has scrolled down to read.
  if (!atTop) list.scrollTop += row.offsetHeight;
}

export class Events {
  constructor(list, page) {
    this.list = list;
    this.page = page;
    this.rows = new Map();
    this.entries = new Map(); // The newest message of each event in the list.
    this.lost = new Map(); // By source: the row that says that it is lost.
  }

  forget(id) {
    this.rows.delete(id);
    this.entries.delete(id);
  }

  clear() {
    this.list.replaceChildren();
    this.rows.clear();
    this.entries.clear();
    this.lost.clear();
  }

  event(entry) {
    let row = this.rows.get(entry.id);
    if (!row?.isConnected) {
      const open = make("button", "open", entry.label);
      open.type = "button";
      open.addEventListener("click", () => this.page.openEvent(this.entries.get(entry.id)));
      row = make("li", "", "", make("span", "class", "", open), make("span", "what"));
      row.append(make("span", "where", entry.source), make("span", "when", clock(entry.start_wall_s)));
      row.dataset.event = String(entry.id);
      row.querySelector(".where").title = entry.source;
      row.style.setProperty("--colour", colourOf(Math.max(0, this.page.labels.indexOf(entry.label))));
      this.rows.set(entry.id, row);
      put(this.list, row);
      // A page may stay open for months: forget rows that have left the list.
      for (const [id, other] of this.rows) if (!other.isConnected) this.forget(id);
    }
    this.entries.set(entry.id, entry);
    row.querySelector(".open").setAttribute("aria-label", `${entry.label}, ${entry.source}, ${clock(entry.start_wall_s)}`);
    const what = row.querySelector(".what");
    if (entry.event === "start") {
      what.replaceChildren(make("span", "going", "now"));
    } else {
      what.textContent = `${seconds(Math.max(0, entry.end_s - entry.start_s))}, peak ${percent(entry.peak)}`;
    }
  }

  /** Show a notice; further attempts at a lost source change its row, or else they would fill the list. */
  notice(entry) {
    const known = entry.notice === "lost" ? this.lost.get(entry.source) : null;
    const row = known?.isConnected ? known : make("li", "notice", "", make("span", "where"), make("span", "when"), make("span", "text"));
    const [where, when, text] = row.children;
    setText(where, entry.source);
    setText(when, clock(entry.wall_s));
    setText(text, `${entry.notice[0].toUpperCase()}${entry.notice.slice(1)}: ${without(entry.source, entry.text)}`);
    if (row !== known) put(this.list, row);
    if (entry.notice === "lost") this.lost.set(entry.source, row);
    else if (BACK.includes(entry.notice)) this.lost.delete(entry.source);
  }
}

export class Results {
  constructor(list) {
    this.list = list;
  }

  clear() {
    this.list.replaceChildren();
  }

  window(entry) {
    const row = make("li", "", "", make("span", "class", "", make("span", "", entry.label)));
    const more = entry.cut ? "cut short, " : entry.exited_early ? `${entry.steps_used} glimpses, ` : "";
    row.append(make("span", "what", more + percent(entry.confidence)));
    const where = make("span", "where", entry.source);
    where.title = entry.source;
    row.append(where, make("span", "when", clock(entry.wall_s)));
    const bar = make("span", "bar", "", make("i"));
    bar.firstElementChild.style.width = `${entry.confidence * 100}%`;
    row.append(bar);
    row.style.setProperty("--colour", colourOf(entry.class_id));
    put(this.list, row);
  }
}

/** Show facts about the model and the device in the page's header. */
export function showFacts(list, status) {
  const { model, sensors } = status;
  const facts = [
    ["Backend", model.backend],
    ["Variant", model.variant],
    ["Glimpses", `${Number(model.glimpse_fps)} per s, ${model.segments} per window`],
    ["Uptime", seconds(status.uptime_s)],
  ];
  if (typeof sensors.temperature_c === "number") facts.push(["Temperature", `${Math.round(sensors.temperature_c)} °C`]);
  if (typeof sensors.power_w === "number") facts.push(["Power", `${sensors.power_w.toFixed(1)} W`]);
  if (status.stalled_s > 5) facts.push(["Stalled for", seconds(status.stalled_s)]);
  while (list.children.length > facts.length) list.lastElementChild.remove();
  facts.forEach(([name, value], place) => {
    const item = list.children[place] ?? list.appendChild(make("li", "", "", make("span"), " ", make("b")));
    setText(item.firstElementChild, name);
    setText(item.lastElementChild, value);
  });
}

const INNER = new Set(["web page", "notices", "stdout", "screen"]);

/** Show the outputs and how many messages each of them handled, dropped and failed. */
export function showOutputs(panel, list, listeners) {
  const outputs = listeners.filter(({ name, dropped }) => !INNER.has(name) || (dropped > 0 && name !== "screen"));
  panel.hidden = outputs.length === 0;
  while (list.children.length > outputs.length) list.lastElementChild.remove();
  outputs.forEach(({ name, handled, dropped, failed, dropping }, place) => {
    const row = list.children[place] ?? list.appendChild(make("li", "", "", make("span", "where"), make("span", "what")));
    const [where, what] = row.children;
    setText(where, name);
    where.title = name;
    const counts = [`${count(handled)} written`];
    if (dropped > 0) counts.push(`${count(dropped)} dropped${dropping ? " and counting" : ""}`);
    if (failed > 0) counts.push(`${count(failed)} failed`);
    setText(what, counts.join(", "));
    row.classList.toggle("alert", dropped > 0 || failed > 0);
    row.classList.toggle("dropping", dropping);
  });
}
