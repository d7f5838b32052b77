// Regions and masks on a picture: drawn and moved with a mouse, by touch or with the keyboard, or typed as numbers.

import { make, setText } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const MIN_POINTS = 3;
const MAX_POINTS = 64;
const STEP = 0.01;
const LARGE_STEP = 0.05;
const FINE_STEP = 0.001;
const CLOSE = 0.025; // A click this near the first corner finishes a shape.
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const NUMBER = String.raw`\d*\.?\d+`;
const POINTS = new RegExp(String.raw`^\s*${NUMBER},${NUMBER}(\s+${NUMBER},${NUMBER})*\s*$`);

const within = (value) => Math.round(Math.min(1, Math.max(0, value)) * 1e4) / 1e4;
const shown = (value) => `${Math.round(value * 1000) / 10} %`;
const place = (element, [x, y]) => {
  element.style.left = `${x * 100}%`;
  element.style.top = `${y * 100}%`;
};

/** Return an area's corners as text, as the command line takes them. */
export const asText = (points) => points.map(([x, y]) => `${x},${y}`).join(" ");

/** Return corners written as text; throw an Error that says what is wrong. */
export function fromText(text) {
  if (!POINTS.test(text)) throw new Error("write the corners as x,y x,y x,y, such as 0.1,0.1 0.5,0.1 0.5,0.4");
  const points = text.trim().split(/\s+/).map((point) => point.split(",").map(Number));
  if (points.length < MIN_POINTS) throw new Error(`needs at least ${MIN_POINTS} corners`);
  if (points.length > MAX_POINTS) throw new Error(`has at most ${MAX_POINTS} corners`);
  if (points.some((point) => point.some((value) => value > 1))) throw new Error("x and y must be 0 to 1");
  return points;
}

export class Polygons {
  /**
   * @param stage the element with the picture; it has a canvas, an svg, a box for corners and a cross-hair.
   * @param list the list of areas, which holds their numbers.
   * @param say is called with a line for people.
   */
  constructor(stage, list, say) {
    this.stage = stage;
    this.list = list;
    this.say = say;
    this.template = document.getElementById("area");
    this.shapes = stage.querySelector("svg");
    this.corners = stage.querySelector("#corners");
    this.cross = stage.querySelector("#cross");
    this.finishButton = document.getElementById("finish");
    this.cancelButton = document.getElementById("cancel-drawing");
    this.areas = [];
    this.chosen = null;
    this.drawing = null; // The area that is being drawn.
    stage.addEventListener("click", (event) => this.clicked(event));
    stage.addEventListener("keydown", (event) => this.key(event));
    this.finishButton.addEventListener("click", () => this.finish());
    this.cancelButton.addEventListener("click", () => this.cancel());
  }

  set(regions, masks) {
    this.areas = [
      ...regions.map((points) => ({ kind: "region", points: points.map((point) => [...point]) })),
      ...masks.map((points) => ({ kind: "mask", points: points.map((point) => [...point]) })),
    ];
    this.chosen = this.areas[0] ?? null;
    this.drawing = null;
    this.show();
  }

  of(kind) {
    return this.areas.filter((area) => area.kind === kind).map((area) => area.points);
  }

  /** Whether all numbers that were typed are in use. */
  get valid() {
    return !this.list.querySelector("[aria-invalid=true]");
  }

  name(area) {
    const place = this.areas.filter((other) => other.kind === area.kind).indexOf(area);
    return `${area.kind === "mask" ? "Mask" : "Region"} ${place + 1}`;
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  begin(kind) {
    this.drawing = { kind, points: [] };
    this.at = [0.5, 0.5];
    this.chosen = null;
    this.show();
    this.stage.focus();
    this.say(`Drawing a ${kind}: click its corners, or move the cross with the arrow keys and press Enter.`);
  }

  add(point) {
    const { points } = this.drawing;
    const [first] = points;
    if (first && points.length >= MIN_POINTS && Math.hypot(first[0] - point[0], first[1] - point[1]) < CLOSE) {
      this.finish();
      return;
    }
    if (points.length === MAX_POINTS) return;
    points.push(point);
    this.show();
    const more = points.length < MIN_POINTS ? `${MIN_POINTS - points.length} more needed` : "press Finish to close it";
    this.say(`Corner ${points.length} at ${shown(point[0])}, ${shown(point[1])}: ${more}.`);
  }

  finish() {
    if (!this.drawing || this.drawing.points.length < MIN_POINTS) return;
    this.areas.push(this.drawing);
    this.chosen = this.drawing;
    this.drawing = null;
    this.show();
    this.say(`${this.name(this.chosen)} added. Drag its corners, or move them with the arrow keys.`);
    this.corners.firstElementChild?.focus();
  }

  /** Stop drawing; return whether anything was being drawn. */
  cancel() {
    if (!this.drawing) return false;
    this.drawing = null;
    this.show();
    this.say("Drawing cancelled.");
    return true;
  }

  pointOf(event) {
    const box = this.stage.getBoundingClientRect();
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
  }

  clicked(event) {
    if (this.drawing) {
      this.at = this.pointOf(event);
      this.add(this.at);
      return;
    }
    const area = this.areas[Number(event.target.dataset?.area)];
    if (area) this.choose(area);
  }

  key(event) {
    if (!this.drawing || event.target !== this.stage) return;
    const arrow = ARROWS[event.key];
    if (arrow) this.moveCross(arrow, event);
    else if (event.key === "Enter" || event.key === " ") this.add(this.at);
    else if (event.key === "Backspace") {
      this.drawing.points.pop();
      this.show();
    } else if (event.key === "Escape") this.cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  moveCross([dx, dy], event) {
    const step = stepOf(event);
    this.at = [within(this.at[0] + dx * step), within(this.at[1] + dy * step)];
    place(this.cross, this.at);
    this.say(`Cross at ${shown(this.at[0])}, ${shown(this.at[1])}.`);
  }

  // -- changing -------------------------------------------------------------------------------------------------------

  choose(area) {
    this.chosen = area;
    this.show();
  }

  remove(area) {
    this.areas = this.areas.filter((other) => other !== area);
    if (this.chosen === area) this.chosen = this.areas[0] ?? null;
    this.show();
    (this.list.querySelector("button") ?? this.stage).focus();
  }

  move(number, point) {
    this.chosen.points[number] = point;
    this.placeAll();
  }

  cornerKey(event, number) {
    const { points } = this.chosen;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = stepOf(event);
      this.move(number, points[number].map((value, axis) => within(value + arrow[axis] * step)));
    } else if (event.key === "Insert" || event.key === "+") {
      if (points.length === MAX_POINTS) return;
      const next = points[(number + 1) % points.length];
      points.splice(number + 1, 0, points[number].map((value, axis) => within((value + next[axis]) / 2)));
      this.show();
      this.corners.children[number + 1].focus();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      if (points.length === MIN_POINTS) {
        this.say(`An area has at least ${MIN_POINTS} corners.`);
        return;
      }
      points.splice(number, 1);
      this.show();
      this.corners.children[Math.min(number, points.length - 1)].focus();
    } else return;
    event.preventDefault();
  }

  corner(number) {
    const button = make("button", "corner");
    button.type = "button";
    button.addEventListener("keydown", (event) => this.cornerKey(event, number));
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.dragged = number;
    });
    button.addEventListener("pointermove", (event) => {
      if (this.dragged === number) this.move(number, this.pointOf(event));
    });
    for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => (this.dragged = null));
    button.addEventListener("focus", () =>
      this.say("Arrow keys move this corner, with Shift by more, with Alt by less; + adds one after it, Delete removes it."),
    );
    return button;
  }

  // -- showing --------------------------------------------------------------------------------------------------------

  show() {
    const all = this.drawing ? [...this.areas, this.drawing] : this.areas;
    this.shapes.replaceChildren(
      ...all.map((area, number) => {
        const open = area === this.drawing;
        const shape = document.createElementNS(SVG, open ? "polyline" : "polygon");
        shape.dataset.kind = area.kind;
        if (!open) shape.dataset.area = String(number);
        shape.classList.toggle("chosen", area === this.chosen || open);
        return shape;
      }),
    );
    const active = this.drawing ?? this.chosen;
    this.corners.replaceChildren(
      ...(active?.points ?? []).map((_, number) => (this.drawing ? make("i", "corner") : this.corner(number))),
    );
    this.cross.hidden = !this.drawing;
    if (this.drawing) place(this.cross, this.at);
    this.stage.classList.toggle("drawing", Boolean(this.drawing));
    this.finishButton.hidden = this.cancelButton.hidden = !this.drawing;
    this.finishButton.disabled = !this.drawing || this.drawing.points.length < MIN_POINTS;
    this.showList();
    this.placeAll();
  }

  /** Put shapes, corners and numbers where the points are. */
  placeAll() {
    const all = this.drawing ? [...this.areas, this.drawing] : this.areas;
    all.forEach((area, number) => this.shapes.children[number].setAttribute("points", asText(area.points)));
    const active = this.drawing ?? this.chosen;
    (active?.points ?? []).forEach((point, number) => {
      const corner = this.corners.children[number];
      place(corner, point);
      if (!this.drawing) {
        corner.setAttribute(
          "aria-label", `Corner ${number + 1} of ${this.name(active)}: ${shown(point[0])}, ${shown(point[1])}`,
        );
      }
    });
    this.areas.forEach((area, number) => {
      const input = this.list.children[number]?.querySelector("input");
      if (input && input !== document.activeElement) input.value = asText(area.points);
    });
  }

  showList() {
    this.list.replaceChildren(
      ...this.areas.map((area) => {
        const row = this.template.content.firstElementChild.cloneNode(true);
        const name = this.name(area);
        const choose = row.querySelector(".choose");
        setText(choose, name);
        choose.setAttribute("aria-pressed", String(area === this.chosen));
        choose.addEventListener("click", () => {
          this.choose(area);
          this.list.children[this.areas.indexOf(area)].querySelector(".choose").focus();
        });
        const input = row.querySelector("input");
        const problem = row.querySelector(".problem");
        problem.id = `${area.kind}-${this.areas.indexOf(area)}-problem`;
        input.setAttribute("aria-label", `Corners of ${name}`);
        input.setAttribute("aria-describedby", problem.id);
        input.addEventListener("input", () => this.typed(area, input, problem));
        const discard = row.querySelector(".discard");
        discard.setAttribute("aria-label", `Remove ${name}`);
        discard.addEventListener("click", () => this.remove(area));
        return row;
      }),
    );
  }

  typed(area, input, problem) {
    let points = null;
    try {
      points = fromText(input.value);
    } catch (error) {
      setText(problem, error.message);
    }
    input.setAttribute("aria-invalid", String(points === null));
    if (points === null) return;
    setText(problem, "");
    const same = points.length === area.points.length;
    area.points = points;
    this.chosen = area;
    if (same && this.corners.children.length === points.length) this.placeAll();
    else this.showCorners();
  }

  /** Show the corners of the chosen area again without touching the list, where a person is typing. */
  showCorners() {
    this.corners.replaceChildren(...this.chosen.points.map((_, number) => this.corner(number)));
    this.placeAll();
  }
}

function stepOf(event) {
  return event.shiftKey ? LARGE_STEP : event.altKey ? FINE_STEP : STEP;
}
