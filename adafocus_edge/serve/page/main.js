// The page: distributes the server's messages to cards and lists.

import { Camera } from "./camera.js";
import { Card } from "./card.js";
import { reducedMotion, setText } from "./dom.js";
import { Events, Results, showFacts, showOutputs } from "./lists.js";
import { Live } from "./live.js";
import { Upload } from "./upload.js";
import { Viewer } from "./viewer.js";
import { Wall } from "./wall.js";

const MAX_PICTURE_FPS = 24; // Of all visible streams together: encoding more would take CPU time from the model.
const BANNER_MS = 1500; // Shorter interruptions are not reported.

const page = {
  hello: null,
  model: null,
  labels: [],
  cards: new Map(),
  connected: false,
  clockS: 0,
  expected: null,

  /** Return the server's time; this machine's clock may be wrong. */
  nowS: () => Date.now() / 1000 + page.clockS,

  pictureFps() {
    const shown = [...page.cards.values()].filter((card) => card.visible && !card.paused).length;
    return Math.max(1, Math.min(page.hello.picture_fps, MAX_PICTURE_FPS / Math.max(1, shown)));
  },

  enlarge: (card) => wall.enlarge(card),

  toggleFullScreen: () => wall.toggleFullScreen(),

  openEvent: (entry) => viewer.event(entry),

  openGlimpse: (title, facts, picture) => viewer.show(title, facts, picture),

  /** Show a source's card, on whichever page it is. */
  reveal(card, smooth = !reducedMotion()) {
    wall.reveal(card);
    card.element.scrollIntoView({ block: "nearest", behavior: smooth ? "smooth" : "auto" });
  },

  /** Show a source's card as soon as it appears. */
  expect(name, smooth) {
    page.expected = { name, smooth };
    seek();
  },
};

const wall = new Wall(page);
const viewer = new Viewer(page);
const nothing = document.getElementById("nothing");
const events = new Events(document.getElementById("events"), page);
const results = new Results(document.getElementById("results"));
let upload = null;
let camera = null;

function arrange() {
  wall.arrange();
  nothing.hidden = page.cards.size > 0;
  if (!nothing.hidden) nothing.replaceChildren(document.getElementById("no-streams").content.cloneNode(true));
}

function seek() {
  const card = page.expected && page.cards.get(page.expected.name);
  if (!card) return;
  page.reveal(card, page.expected.smooth);
  page.expected = null;
}

function cardOf(name) {
  let card = page.cards.get(name);
  if (!card) {
    card = new Card(name, page);
    page.cards.set(name, card);
    wall.streams.append(card.element);
    arrange();
    seek();
  }
  return card;
}

const take = {
  hello(hello) {
    page.hello = hello;
    events.clear();
    results.clear();
    for (const card of page.cards.values()) {
      card.curve.clear();
      card.curve.spanS = hello.curve_s;
    }
    if (hello.status.model) take.status(hello.status);
    for (const [name, points] of Object.entries(hello.curves)) {
      if (page.cards.has(name)) page.cards.get(name).curve.points = points;
    }
    const looks = new Map(hello.looks.map((entry) => [entry.source, entry]));
    for (const [name, card] of page.cards) {
      if (looks.has(name)) card.recall(looks.get(name));
      else card.renew();
    }
    const past = [
      ...hello.events.map((entry) => ["event", entry]),
      ...hello.notices.map((entry) => ["notice", entry]),
    ].sort((one, other) => one[1].wall_s - other[1].wall_s);
    for (const [kind, entry] of past) take[kind](entry, true);
    for (const entry of hello.windows) take.window(entry);
    document.getElementById("sign-out").hidden = !hello.sign_out;
    setText(document.getElementById("drop-hint"), `Drop a file here or click to choose, up to ${hello.max_upload_mb} MB`);
    upload ??= new Upload(page);
    camera ??= new Camera(page);
  },

  status(status) {
    page.clockS = status.now_s - Date.now() / 1000;
    page.model = status.model;
    page.labels = status.model.classes;
    showFacts(document.getElementById("facts"), status);
    showOutputs(document.getElementById("outputs-panel"), document.getElementById("outputs"), status.listeners);
    const names = new Set(status.sources.map((source) => source.name));
    for (const [name, card] of page.cards) {
      if (names.has(name)) continue;
      card.remove();
      page.cards.delete(name);
    }
    for (const source of status.sources) cardOf(source.name).status(source);
    arrange();
  },

  look(entry) {
    page.cards.get(entry.source)?.look(entry);
  },

  window(entry) {
    results.window(entry);
    page.cards.get(entry.source)?.curve.windows.push(entry.wall_s);
  },

  event(entry) {
    events.event(entry);
    viewer.update(entry);
    page.cards.get(entry.source)?.curve.event(entry);
  },

  notice(entry, past = false) {
    events.notice(entry);
    const card = page.cards.get(entry.source);
    if (entry.notice === "connected" && !past) card?.renew(); // It may be another source.
    if (entry.notice === "ended" && !past && card) card.over = true;
    if (["lost", "failed"].includes(entry.notice)) card?.trouble(entry.text);
  },
};

const banner = document.getElementById("banner");
const link = document.getElementById("link");
let bannerTimer = null;

function connection(connected) {
  page.connected = connected;
  document.body.classList.toggle("offline", !connected);
  link.dataset.state = connected ? "live" : "lost";
  setText(link.querySelector(".text"), connected ? "Connected" : "Disconnected");
  clearTimeout(bannerTimer);
  bannerTimer = null;
  if (connected) {
    banner.hidden = true;
    setText(banner, "");
    return;
  }
  bannerTimer = setTimeout(() => {
    banner.hidden = false;
    setText(banner, "The connection to the server is lost. Reconnecting; the page shows the last data received.");
  }, BANNER_MS);
}

document.getElementById("theme").addEventListener("change", () => {
  for (const card of page.cards.values()) card.curve.draw(page.nowS(), page.labels);
});

new Live((kind, entry) => take[kind](entry), connection);
