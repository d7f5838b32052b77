// Sources and event rules: lists, forms, and a picture to draw regions and masks on.

import { ask, setText, without } from "./dom.js";
import { Polygons } from "./polygons.js";

const STATUS_MS = 2000;
const REFRESH_MS = 10000;
const STATES = {
  connecting: "Connecting", running: "Live", lost: "Lost", ended: "Ended", failed: "Failed", paused: "Paused", none: "Not running",
};

const element = (id) => document.getElementById(id);
const rowTemplate = element("row");
const sourceDialog = element("source-dialog");
const sourceForm = element("source-form");
const ruleDialog = element("rule-dialog");
const ruleForm = element("rule-form");
const canvas = element("still");
const polygons = new Polygons(element("stage"), element("areas"), (text) => setText(element("stage-note"), text));

let configuration = null;
let states = new Map(); // by name of a source
let number = null; // of the entry in the open dialog; null for a new one
let based = ""; // the version that the open dialog is based on
let opener = null; // what gets the focus when the dialog closes
let tests = 0;

const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function send(method, address, body) {
  const options = { method };
  if (body) Object.assign(options, { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return ask(address, options);
}

// -- lists ------------------------------------------------------------------------------------------------------------

function stateOf(source) {
  if (source.paused) return ["paused", ""];
  const found = source.running.map((name) => states.get(name)).filter(Boolean);
  if (found.length === 0) return ["none", ""];
  const worst = ["failed", "lost", "connecting", "ended"].map((state) => found.find((one) => one.state === state));
  const one = worst.find(Boolean) ?? found[0];
  return [one.state, one.text];
}

function showState(row, source) {
  const [state, text] = stateOf(source);
  const badge = row.querySelector(".badge");
  badge.dataset.state = state;
  setText(badge, STATES[state] ?? state);
  setText(row.querySelector(".detail"), without(source.name ?? "", text));
}

function newRow(title, about, fixed) {
  const row = rowTemplate.content.firstElementChild.cloneNode(true);
  setText(row.querySelector(".name"), title);
  setText(row.querySelector(".about"), about);
  row.querySelector(".buttons").hidden = fixed;
  for (const name of ["edit", "remove"]) {
    const button = row.querySelector(`.${name}`);
    button.setAttribute("aria-label", `${button.textContent} ${title}`);
  }
  return row;
}

function sourceRow(source, place, fixed) {
  const areas = [];
  if (source.regions.length) areas.push(plural(source.regions.length, "region"));
  if (source.masks.length) areas.push(plural(source.masks.length, "mask"));
  if (source.name === null && source.running.length !== 1) areas.push(plural(source.running.length, "source"));
  const title = source.name ?? source.address;
  const about = [source.name === null ? "" : source.address, ...areas].filter(Boolean).join("; ");
  const row = newRow(title, about, fixed);
  const pause = row.querySelector(".pause");
  pause.hidden = source.name === null;
  setText(pause, source.paused ? "Resume" : "Pause");
  pause.setAttribute("aria-label", `${pause.textContent} ${title}`);
  pause.addEventListener("click", () => {
    const { name, regions, masks } = source;
    const body = { version: configuration.version, name, regions, masks, paused: !source.paused };
    change(() => send("PUT", `/api/config/sources/${place}`, body), () => rowAt("sources", place, ".pause"));
  });
  row.querySelector(".edit").addEventListener("click", (event) => openSource(place, event.currentTarget));
  row.querySelector(".remove").addEventListener("click", () => remove("sources", place, title));
  showState(row, source);
  return row;
}

function ruleRow(rule, place, fixed) {
  const parts = [`at ${rule.threshold} or above`];
  if (rule.for_s) parts.push(`for ${rule.for_s} s`);
  if (rule.cooldown_s) parts.push(`then ${rule.cooldown_s} s pause`);
  const row = newRow(rule.label, parts.join(", "), fixed);
  row.querySelector(".badge").remove();
  row.querySelector(".pause").remove();
  row.querySelector(".edit").addEventListener("click", (event) => openRule(place, event.currentTarget));
  row.querySelector(".remove").addEventListener("click", () => remove("events", place, rule.label));
  return row;
}

const rowAt = (list, place, part) => element(list).children[place]?.querySelector(part);

function fixedNote(id, text) {
  element(id).hidden = !text;
  setText(element(id), text ? `Read only: ${text}.` : "");
}

function show(found) {
  configuration = found;
  const { sources, rules, sources_fixed, rules_fixed, problem, changed, file } = found;
  setText(element("state"), file ? `Saved in ${file}` : "");
  element("state").hidden = !file;
  element("changed").hidden = !(changed && file && !(sources_fixed && rules_fixed));
  setText(element("changed").querySelector("span"), problem ?? `${file} was changed on disk. `);
  fixedNote("sources-fixed", sources_fixed);
  fixedNote("rules-fixed", rules_fixed === sources_fixed ? "" : rules_fixed);
  element("add-source").hidden = Boolean(sources_fixed);
  element("add-rule").hidden = Boolean(rules_fixed);
  element("sources").replaceChildren(...sources.map((one, place) => sourceRow(one, place, Boolean(sources_fixed))));
  element("rules").replaceChildren(...rules.map((one, place) => ruleRow(one, place, Boolean(rules_fixed))));
  element("no-sources").hidden = sources.length > 0;
  element("no-rules").hidden = rules.length > 0;
}

function complain(text) {
  element("state").hidden = false;
  element("state").classList.toggle("wrong", Boolean(text));
  setText(element("state"), text || (configuration?.file ? `Saved in ${configuration.file}` : ""));
}

/** Make a change, show what is configured after it, and put the focus where it was. */
async function change(work, focus = () => null) {
  try {
    show(await work());
    complain("");
    (focus() ?? element("sources")).focus();
  } catch (error) {
    await load();
    complain(error.message);
  }
}

function remove(list, place, title) {
  if (!confirm(`Remove ${title}?`)) return;
  const version = encodeURIComponent(configuration.version);
  change(() => send("DELETE", `/api/config/${list}/${place}?version=${version}`));
}

async function load() {
  try {
    const found = await ask("/api/config");
    if (JSON.stringify(found) !== JSON.stringify(configuration)) show(found);
  } catch (error) {
    complain(error.message);
  }
}

async function refreshStates() {
  if (document.hidden) return;
  try {
    const status = await ask("/api/status");
    states = new Map(status.sources.map((source) => [source.name, source]));
  } catch {
    return; // The next one may be answered.
  }
  [...element("sources").children].forEach((row, place) => showState(row, configuration.sources[place]));
}

// -- forms ------------------------------------------------------------------------------------------------------------

function showProblems(form, problems, general = "") {
  for (const place of form.querySelectorAll(".problem[id]")) {
    const field = place.id.replace(/-problem$/, "");
    const input = form.elements[field];
    if (input) input.setAttribute("aria-invalid", String(field in problems));
    if (input || field in problems || ["regions", "masks"].includes(field)) setText(place, problems[field] ?? "");
  }
  const known = Object.keys(problems).some((field) => element(`${field}-problem`));
  setText(form.querySelector("[role=alert]"), known ? "" : general);
  form.querySelector("[aria-invalid=true]")?.focus();
}

function opened(dialog, form, place, button) {
  number = place;
  based = configuration.version;
  opener = button;
  showProblems(form, {});
  dialog.showModal();
}

async function save(event, dialog, address, body) {
  event.preventDefault();
  const form = event.currentTarget;
  const added = number === null;
  const list = dialog === sourceDialog ? "sources" : "rules";
  const place = number;
  try {
    show(await send(added ? "POST" : "PUT", added ? address : `${address}/${number}`, { version: based, ...body }));
  } catch (error) {
    showProblems(form, error.fields ?? {}, error.message);
    return;
  }
  complain("");
  dialog.close();
  (added ? element(`add-${list.slice(0, -1)}`) : rowAt(list, place, ".edit"))?.focus();
}

function openSource(place, button) {
  const source = place === null ? null : configuration.sources[place];
  setText(element("source-heading"), source ? `Source ${source.name ?? source.address}` : "New source");
  sourceForm.elements.name.value = source?.name ?? "";
  sourceForm.elements.address.value = source?.address ?? "";
  polygons.set(source?.regions ?? [], source?.masks ?? []);
  setText(element("stage-note"), "Draw a region or a mask, or choose one from the list to change it.");
  setText(element("test-note"), "");
  clearPicture();
  opened(sourceDialog, sourceForm, place, button);
  if (source) test();
}

sourceForm.addEventListener("submit", (event) => {
  event.preventDefault();
  if (polygons.drawing) polygons.finish();
  if (!polygons.valid || polygons.drawing) {
    setText(element("source-problem"), polygons.drawing ? "Finish or cancel the drawing first." : "Correct the corners first.");
    return;
  }
  const source = number === null ? null : configuration.sources[number];
  const address = sourceForm.elements.address.value.trim();
  save(event, sourceDialog, "/api/config/sources", {
    name: sourceForm.elements.name.value.trim(),
    address: source && address === source.address ? null : address,
    paused: source?.paused ?? false,
    regions: polygons.of("region"),
    masks: polygons.of("mask"),
  });
});

function openRule(place, button) {
  const rule = place === null ? { label: configuration.classes[0], threshold: 0.8, for_s: 0, cooldown_s: 0 } : configuration.rules[place];
  setText(element("rule-heading"), place === null ? "New event rule" : `Event rule ${rule.label}`);
  ruleForm.elements.label.replaceChildren(...configuration.classes.map((name) => new Option(name, name)));
  for (const [name, value] of Object.entries(rule)) ruleForm.elements[name].value = String(value);
  opened(ruleDialog, ruleForm, place, button);
}

ruleForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const body = { label: ruleForm.elements.label.value };
  const problems = {};
  for (const name of ["threshold", "for_s", "cooldown_s"]) {
    const text = ruleForm.elements[name].value.trim().replace(",", ".");
    body[name] = Number(text);
    if (text === "" || !Number.isFinite(body[name])) problems[name] = "must be a number";
  }
  if (Object.keys(problems).length) showProblems(ruleForm, problems);
  else save(event, ruleDialog, "/api/config/events", body);
});

// -- the picture ------------------------------------------------------------------------------------------------------

function clearPicture() {
  canvas.width = 16;
  canvas.height = 9;
  delete canvas.dataset.shown;
  canvas.setAttribute("aria-label", "No picture yet");
}

/** Open the source of the form for one frame, and show it or why there is none. */
async function test() {
  const own = ++tests;
  const button = element("test");
  const address = sourceForm.elements.address.value.trim();
  const source = number === null ? null : configuration.sources[number];
  const body = { number, name: sourceForm.elements.name.value.trim(), address: source && address === source.address ? null : address };
  setText(element("test-note"), "Opening the source");
  button.disabled = true;
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch("/api/config/test", options);
    if (own !== tests) return;
    if (!answer.ok) {
      const refused = await answer.json();
      setText(element("test-note"), refused.fields?.address ? `Address ${refused.fields.address}` : refused.error);
      return;
    }
    const picture = await createImageBitmap(await answer.blob());
    canvas.width = picture.width;
    canvas.height = picture.height;
    canvas.getContext("2d").drawImage(picture, 0, 0);
    canvas.dataset.shown = "true";
    canvas.setAttribute("aria-label", "Picture of the source");
    setText(element("test-note"), "It works");
    picture.close();
  } catch (error) {
    if (own === tests) setText(element("test-note"), error.message);
  } finally {
    if (own === tests) button.disabled = false;
  }
}

// -- wiring -----------------------------------------------------------------------------------------------------------

for (const dialog of [sourceDialog, ruleDialog]) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("cancel", (event) => dialog === sourceDialog && polygons.cancel() && event.preventDefault());
  dialog.addEventListener("close", () => {
    tests += 1;
    element("test").disabled = false;
    if (opener?.isConnected) opener.focus();
    load();
  });
}
for (const button of document.querySelectorAll("[data-draw]")) {
  button.addEventListener("click", () => polygons.begin(button.dataset.draw));
}
element("add-source").addEventListener("click", (event) => openSource(null, event.currentTarget));
element("add-rule").addEventListener("click", (event) => openRule(null, event.currentTarget));
element("test").addEventListener("click", test);
element("reload").addEventListener("click", () => change(() => send("POST", "/api/config/reload")));
setInterval(refreshStates, STATUS_MS);
setInterval(() => {
  if (!document.hidden && !sourceDialog.open && !ruleDialog.open) load();
}, REFRESH_MS);
await load();
await refreshStates();
