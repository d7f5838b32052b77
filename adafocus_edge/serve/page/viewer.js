// The dialog that shows one thing larger: an event with its clip or picture, or a glimpse of an uploaded file.

import { ask, clock, make, percent, seconds, setText } from "./dom.js";

const AGAIN_MS = 3000; // Interval of asking for a clip that is not there yet.
const NEW_S = 60; // An event is shown before the archive has it.

export class Viewer {
  constructor(page) {
    this.page = page;
    this.dialog = document.getElementById("viewer");
    this.media = document.getElementById("viewer-media");
    this.note = document.getElementById("viewer-note");
    this.choices = document.getElementById("viewer-choices");
    this.entry = null; // The event that is shown.
    document.getElementById("close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // Beside the dialog.
    });
    this.dialog.addEventListener("close", () => {
      this.entry = null;
      clearTimeout(this.retry);
      this.media.replaceChildren(); // Ends a clip that plays.
    });
  }

  show(title, facts, media = null) {
    this.entry = null;
    clearTimeout(this.retry);
    setText(document.getElementById("viewer-title"), title);
    setText(document.getElementById("viewer-facts"), facts);
    setText(this.note, "");
    this.media.replaceChildren(...(media ? [media] : []));
    this.choices.replaceChildren();
    if (!this.dialog.open) this.dialog.showModal();
  }

  event(entry) {
    this.show(`${entry.label}, ${entry.source}`, factsOf(entry));
    this.entry = entry;
    if (entry.key) {
      const judge = make("a", "button", "Judge it in the archive");
      judge.href = `/events#${encodeURIComponent(entry.key)}`;
      this.choices.append(judge);
      this.load(entry);
    } else {
      setText(this.note, "There is no clip of it. The option --events DIR of the server keeps one of each event.");
    }
    const card = this.page.cards.get(entry.source);
    if (!card) return;
    const stream = make("button", "", "Show the stream");
    stream.type = "button";
    stream.addEventListener("click", () => {
      this.dialog.close();
      this.page.reveal(card);
    });
    this.choices.append(stream);
  }

  /** Take the end of an event that may be shown. */
  update(entry) {
    if (this.entry?.id !== entry.id) return;
    this.entry = entry;
    setText(document.getElementById("viewer-facts"), factsOf(entry));
  }

  /** Show an event's clip; before it is complete, the picture. */
  async load(entry) {
    const address = `/api/archive/${encodeURIComponent(entry.key)}`;
    let kept;
    try {
      kept = await ask(address);
    } catch (error) {
      if (this.entry?.id !== entry.id) return;
      const isNew = error.status === 404 && this.page.nowS() - entry.wall_s < NEW_S;
      const gone = error.status === 404 ? "It is not in the archive any more." : error.message;
      setText(this.note, isNew ? "It will be here in a moment." : gone);
      if (isNew) this.retry = setTimeout(() => this.load(entry), AGAIN_MS);
      return;
    }
    if (this.entry?.id !== entry.id) return;
    if (kept.clip_s) {
      const player = make("video");
      Object.assign(player, { controls: true, playsInline: true, preload: "metadata", tabIndex: 0 });
      if (kept.picture) player.poster = `${address}/picture.jpg`;
      player.src = `${address}/clip.mp4`;
      player.setAttribute("aria-label", `Clip of ${entry.label}, ${entry.source}`);
      this.media.replaceChildren(player);
      setText(this.note, "");
      return;
    }
    if (kept.picture && !this.media.firstElementChild) {
      const picture = make("img");
      picture.src = `${address}/picture.jpg`;
      picture.alt = `Picture of ${entry.label}, ${entry.source}, with the patch`;
      this.media.append(picture);
    }
    setText(this.note, "The clip will be here a few seconds after the event has ended.");
    this.retry = setTimeout(() => this.load(entry), AGAIN_MS);
  }
}

function factsOf(entry) {
  const lasted = entry.event === "start" ? "lasts" : seconds(Math.max(0, entry.end_s - entry.start_s));
  return `Began at ${clock(entry.start_wall_s)}; ${lasted}; peak ${percent(entry.peak)}`;
}
