// The archive of events: filters, a list of pictures, and a player in which a person marks events right or wrong.

import { ask, percent, seconds, setText } from "./dom.js";

const REFRESH_MS = 10000;
const PAGE_EVENTS = 30;
const MINUTE_MS = 60000;

const element = (id) => document.getElementById(id);
const filters = element("filters");
const list = element("archive");
const more = element("more");
const viewer = element("viewer");
const player = element("player");
const correct = element("correct");
const template = element("event");
const shortFormat = new Intl.DateTimeFormat([], {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});
const timeFormat = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });

const entries = new Map(); // by key, in the order of the list, which has no gaps
const others = new Map(); // by key: events that an address named and that are not in the list
let classes = [];
let opened = null; // key of the event in the player
let order = []; // keys of the list when that event was last in it
let run = 0; // number of the newest request for a first page: answers to older ones are ignored

const addressOf = (key, what) => `/api/archive/${encodeURIComponent(key)}${what}`;

/** Return a minute that was chosen as a moment: its beginning, or its end for the latest start. */
function moment(value, name) {
  return new Date(Date.parse(value) + (name === "until" ? MINUTE_MS - 1 : 0)).toISOString();
}

function question(before) {
  const asked = new URLSearchParams();
  for (const [name, value] of new FormData(filters)) {
    if (value) asked.set(name, name === "since" || name === "until" ? moment(value, name) : value);
  }
  if (before) asked.set("before", before);
  asked.set("limit", String(PAGE_EVENTS));
  return `/api/archive?${asked}`;
}

/** Offer the values that occur in the archive, and keep the choice. */
function offer(name, values) {
  const select = filters.elements[name];
  const known = new Set([...select.options].map((option) => option.value));
  for (const value of values) if (!known.has(value)) select.append(new Option(value, value));
}

function duration(entry) {
  if (!entry.ended_at) return "lasts";
  const lasted = (Date.parse(entry.ended_at) - Date.parse(entry.started_at)) / 1000;
  return `${seconds(Math.max(0, lasted))}${entry.cut ? ", cut" : ""}`;
}

function show(row, entry) {
  const find = (part) => row.querySelector(part);
  const picture = find("img");
  const address = addressOf(entry.key, "/picture.jpg");
  if (entry.picture && picture.getAttribute("src") !== address) picture.src = address;
  setText(find(".class span"), entry.label);
  setText(find(".peak"), `${percent(entry.peak)}, ${duration(entry)}`);
  setText(find(".where"), entry.source);
  find(".where").title = entry.source;
  setText(find(".when"), shortFormat.format(new Date(entry.started_at)));
  find(".when").title = timeFormat.format(new Date(entry.started_at));
  find(".when").dateTime = entry.started_at;
  const mark = find(".mark");
  mark.hidden = !entry.mark;
  mark.dataset.mark = entry.mark ?? "";
  setText(mark, entry.mark === "wrong" && entry.correct ? `wrong: ${entry.correct}` : entry.mark ?? "");
}

function rowOf(entry) {
  const row = template.content.firstElementChild.cloneNode(true);
  row.dataset.key = entry.key;
  row.querySelector(".open").addEventListener("click", () => open(entry.key));
  show(row, entry);
  return row;
}

const rowFor = (key) => [...list.children].find((row) => row.dataset.key === key);

function tally(total, problem = "") {
  const filtered = [...new FormData(filters).values()].some(Boolean);
  const none = filtered ? "No event matches." : "No events yet. They appear here when a rule of --event fires.";
  setText(element("tally"), problem || (total ? `${total} event${total === 1 ? "" : "s"}` : none));
}

async function load({ append = false } = {}) {
  const own = ++run;
  const last = append ? [...entries.keys()].at(-1) : null;
  let found;
  try {
    found = await ask(question(last));
  } catch (error) {
    if (append && error.status === 400) return load(); // the last event of the list was deleted elsewhere
    tally(0, error.message);
    return;
  }
  if (own !== run) return;
  classes = found.classes;
  offer("source", found.sources);
  offer("label", found.labels);
  if (!append) {
    entries.clear();
    list.replaceChildren();
  }
  for (const entry of found.events) {
    entries.set(entry.key, entry);
    list.append(rowOf(entry));
  }
  more.hidden = entries.size >= found.total;
  tally(found.total);
}

/** Add new events and update those in the list, without moving what a person is looking at. */
async function refresh() {
  if (document.hidden) return;
  const own = run;
  let found;
  try {
    found = await ask(question(null));
  } catch (error) {
    tally(0, error.message);
    return;
  }
  if (own !== run) return;
  offer("source", found.sources);
  offer("label", found.labels);
  const page = new Map(found.events.map((entry) => [entry.key, entry]));
  const known = [...entries.keys()];
  const overlap = known.findLastIndex((key) => page.has(key));
  // More events than a page came in between, or the list shows what was deleted elsewhere: begin again.
  if (known.length > 0 && (overlap < 0 || known.length > found.total)) {
    await load();
    return;
  }
  const older = known.slice(overlap + 1).map((key) => [key, entries.get(key)]);
  const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
  entries.clear();
  for (const [key, entry] of [...page, ...older]) entries.set(key, entry);
  for (const [key, row] of rows) if (!entries.has(key)) row.remove();
  let place = null;
  for (const [key, entry] of page) {
    const row = rows.get(key) ?? rowOf(entry);
    show(row, entry);
    const wanted = place ? place.nextElementSibling : list.firstElementChild;
    if (row !== wanted) list.insertBefore(row, wanted);
    place = row;
    if (opened === key) showFacts(entry);
  }
  if (opened) showSteps();
  more.hidden = entries.size >= found.total;
  tally(found.total);
}

function update(entry) {
  (entries.has(entry.key) ? entries : others).set(entry.key, entry);
  const row = rowFor(entry.key);
  if (row) show(row, entry);
  if (opened === entry.key) showFacts(entry);
}

// -- the player -------------------------------------------------------------------------------------------------------

function showFacts(entry) {
  setText(element("viewer-title"), `${entry.label}, ${entry.source}`);
  const size = entry.bytes ? `, ${(entry.bytes / 1e6).toFixed(1)} MB` : "";
  const clip = entry.clip_s ? `clip of ${seconds(entry.clip_s)}${size}` : "no clip";
  const when = timeFormat.format(new Date(entry.started_at));
  setText(element("viewer-facts"), `${when}; ${duration(entry)}; peak ${percent(entry.peak)}; ${clip}`);
  for (const button of viewer.querySelectorAll("[data-mark]")) {
    button.setAttribute("aria-pressed", String(button.dataset.mark === entry.mark));
  }
  const others = classes.filter((name) => name !== entry.label);
  element("correct-label").hidden = entry.mark !== "wrong" || others.length < 2;
  if (correct.options.length !== others.length + 1 || correct.options[1]?.value !== others[0]) {
    correct.replaceChildren(new Option("unknown", ""), ...others.map((name) => new Option(name, name)));
  }
  correct.value = entry.correct ?? "";
}

function fetchFiles(entry) {
  player.poster = entry.picture ? addressOf(entry.key, "/picture.jpg") : "";
  player.src = entry.clip_s ? addressOf(entry.key, "/clip.mp4") : "";
}

/** Stop fetching the clip and the picture in the player. */
function emptyPlayer() {
  player.removeAttribute("src");
  player.removeAttribute("poster");
  player.load();
}

function open(key) {
  const entry = entries.get(key) ?? others.get(key);
  if (!entry) return;
  opened = key;
  setText(element("problem"), "");
  showFacts(entry);
  player.hidden = !entry.clip_s;
  fetchFiles(entry);
  player.setAttribute("aria-label", `Clip of ${entry.label}, ${entry.source}`);
  const download = element("download");
  download.hidden = !entry.clip_s;
  download.href = addressOf(key, "/clip.mp4?download=1");
  showSteps();
  if (!viewer.open) viewer.showModal();
  history.replaceState(null, "", `#${encodeURIComponent(key)}`);
}

/** Return the key of the nearest event that is newer (-1) or older (1) and in the list: the opened one may have left it. */
function neighbour(by) {
  let place = order.indexOf(opened);
  if (place < 0) return undefined; // named by an address, and never in the list
  do place += by; while (place in order && !entries.has(order[place]));
  return order[place];
}

function showSteps() {
  if (entries.has(opened)) order = [...entries.keys()];
  element("newer").disabled = !neighbour(-1);
  element("older").disabled = !neighbour(1);
}

function step(by) {
  const next = neighbour(by);
  if (next) open(next);
}

async function judge(mark, which) {
  const key = opened;
  try {
    update(await ask(addressOf(key, "/mark"), {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ mark, correct: which || null }),
    }));
    setText(element("problem"), "");
  } catch (error) {
    setText(element("problem"), error.message);
  }
}

for (const button of viewer.querySelectorAll("[data-mark]")) {
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    judge(pressed ? null : button.dataset.mark, "");
  });
}
correct.addEventListener("change", () => judge("wrong", correct.value));
element("newer").addEventListener("click", () => step(-1));
element("older").addEventListener("click", () => step(1));
element("close").addEventListener("click", () => viewer.close());
element("delete").addEventListener("click", async () => {
  const entry = entries.get(opened) ?? others.get(opened);
  if (!entry || !confirm(`Delete this event of ${entry.source}, its clip and its picture?`)) return;
  emptyPlayer(); // Requests for deleted files would fail.
  const row = rowFor(entry.key);
  row?.querySelector("img").removeAttribute("src");
  try {
    await ask(addressOf(entry.key, ""), { method: "DELETE" });
    viewer.close();
    await load();
  } catch (error) {
    setText(element("problem"), error.message);
    if (row) show(row, entry);
    if (opened === entry.key) fetchFiles(entry);
  }
});
viewer.addEventListener("close", () => {
  emptyPlayer();
  rowFor(opened)?.querySelector(".open").focus();
  opened = null;
  history.replaceState(null, "", location.pathname + location.search);
});
filters.addEventListener("input", () => load());
filters.addEventListener("reset", () => setTimeout(load));
filters.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => load({ append: true }));

/** Open the event that the address names, even if it is not on the first page. */
async function openNamed() {
  let key = "";
  try {
    key = decodeURIComponent(location.hash.slice(1));
  } catch {
    // Not an address of ours.
  }
  if (!key || key === list.id || key === opened) return;
  if (!entries.has(key)) {
    try {
      others.set(key, await ask(addressOf(key, "")));
    } catch (error) {
      tally(entries.size, error.message);
      return;
    }
  }
  open(key);
}

addEventListener("hashchange", openNamed);
setInterval(refresh, REFRESH_MS);
await load();
await openNamed();
