// The wall of streams: how many are on a page, which page is shown, which stream fills the window, full screen.

import { setText } from "./dom.js";

const KEPT = "adafocus-tiles";
const MAX_AUTO = 16; // Streams on a page if their number is not chosen.
const CHART_FROM_PX = 330; // Height of a tile from which it has a chart, as in the style sheet.
const CAPTION_PX = 76; // Height of a tile beside its picture, about.
const CHART_PX = 80;
const PICTURE = 16 / 9;

/** Return the number of columns that makes pictures largest, for tiles that share a surface. */
export function bestColumns(count, width, height) {
  let best = 1;
  let widest = 0;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const high = height / rows;
    const caption = CAPTION_PX + (high < CHART_FROM_PX ? 0 : CHART_PX);
    const wide = Math.min(width / columns, Math.max(0, high - caption) * PICTURE);
    if (wide > widest * 1.01) [best, widest] = [columns, wide];
  }
  return best;
}

export class Wall {
  constructor(page) {
    this.page = page;
    this.element = document.getElementById("wall");
    this.streams = document.getElementById("streams");
    this.tools = document.getElementById("wall-tools");
    this.large = null; // Name of the stream that fills the window.
    this.place = 0; // Number of the page, from 0.
    this.tiles = "auto";
    try {
      this.tiles = localStorage.getItem(KEPT) ?? "auto";
    } catch {
      // Storage is blocked: the choice lasts until the page is closed.
    }
    const choices = [...this.tools.querySelectorAll("#tiles input")];
    if (!choices.some((input) => input.value === this.tiles)) this.tiles = "auto";
    for (const input of choices) {
      input.checked = input.value === this.tiles;
      input.addEventListener("change", () => this.choose(input.value));
    }
    document.getElementById("previous").addEventListener("click", () => this.turn(-1));
    document.getElementById("next").addEventListener("click", () => this.turn(1));
    this.tools.querySelector(".fullscreen").addEventListener("click", () => this.toggleFullScreen());
    document.addEventListener("fullscreenchange", () => this.arrange());
    new ResizeObserver(() => this.arrange()).observe(this.streams);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && this.large && !document.querySelector("dialog[open]")) {
        this.enlarge(this.page.cards.get(this.large));
      }
    });
  }

  get perPage() {
    return this.tiles === "auto" ? MAX_AUTO : Number(this.tiles);
  }

  choose(tiles) {
    const first = this.place * this.perPage;
    this.tiles = tiles;
    this.place = Math.floor(first / this.perPage); // The stream that was first stays on the page.
    try {
      localStorage.setItem(KEPT, tiles);
    } catch {
      // As above.
    }
    this.arrange();
  }

  turn(by) {
    this.place += by;
    this.arrange();
    this.streams.scrollTop = 0;
  }

  /** Let one stream fill the window, or show all again. */
  enlarge(card) {
    if (this.page.cards.size < 2) return;
    this.large = this.large === card.name ? null : card.name;
    this.arrange();
    card.find(".enlarge").focus({ preventScroll: true });
    if (!this.large) card.element.scrollIntoView({ block: "nearest" });
  }

  /** Turn to the page that holds a stream. */
  reveal(card) {
    const number = [...this.page.cards.keys()].indexOf(card.name);
    if (this.large && this.large !== card.name) this.large = null;
    this.place = Math.floor(number / this.perPage);
    this.arrange();
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen().catch(() => {}); // The browser shows why it refuses.
  }

  /** Show the streams of this page, and no others: a card that is hidden requests no pictures. */
  arrange() {
    const cards = [...this.page.cards.values()];
    if (!this.page.cards.has(this.large)) this.large = null;
    const pages = Math.max(1, Math.ceil(cards.length / this.perPage));
    this.place = Math.max(0, Math.min(this.place, pages - 1));
    const from = this.place * this.perPage;
    const shown = this.large ? [this.page.cards.get(this.large)] : cards.slice(from, from + this.perPage);
    for (const card of cards) this.showCard(card, shown.includes(card), cards.length === 1);
    this.setGrid(shown.length);

    const full = document.fullscreenElement !== null;
    document.body.classList.toggle("enlarged", this.large !== null);
    document.body.classList.toggle("full", full);
    for (const button of document.querySelectorAll(".fullscreen")) {
      button.hidden = !document.fullscreenEnabled;
      button.setAttribute("aria-pressed", String(full));
      button.setAttribute("aria-label", full ? "Leave full screen" : "Full screen");
      button.title = button.getAttribute("aria-label");
    }
    this.tools.hidden = cards.length < 2;
    const away = cards.filter((card) => ["lost", "failed"].includes(card.state)).length;
    setText(document.getElementById("wall-tally"), `${cards.length} in all${away ? `, ${away} lost` : ""}`);
    document.getElementById("pager").hidden = pages < 2;
    document.getElementById("previous").disabled = this.place === 0;
    document.getElementById("next").disabled = this.place === pages - 1;
    const to = Math.min(from + this.perPage, cards.length);
    setText(document.getElementById("place"), from + 1 === to ? `Stream ${to}` : `Streams ${from + 1} to ${to}`);
  }

  showCard(card, shown, solo) {
    const large = this.large === card.name;
    card.element.hidden = !shown;
    card.element.classList.toggle("solo", solo);
    card.element.classList.toggle("large", large);
    const button = card.find(".enlarge");
    button.setAttribute("aria-pressed", String(large));
    button.setAttribute("aria-label", large ? "Reduce" : "Enlarge");
    button.title = button.getAttribute("aria-label");
  }

  setGrid(count) {
    const fixed = this.tiles !== "auto" && !this.large;
    const side = Math.sqrt(this.perPage);
    const columns = fixed ? side : bestColumns(count, this.streams.clientWidth, this.streams.clientHeight);
    this.streams.dataset.tiles = this.large ? "auto" : this.tiles;
    this.streams.style.setProperty("--columns", columns);
    this.streams.style.setProperty("--rows", fixed ? side : Math.max(1, Math.ceil(count / columns)));
  }
}
