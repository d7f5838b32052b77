// Small helpers: elements whose text is always set as text (never as HTML), and formatting of numbers and times.

export const PATCH_COLOUR = "#ffb000"; // On pictures, in both themes.

/** Create an element with a class, text and children. */
export function make(tag, className = "", text = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

/** Set an element's text if it differs, to avoid needless layout and announcements by screen readers. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const clockFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

/** Return the time of day of seconds since 1970. */
export function clock(wallS) {
  return clockFormat.format(new Date(wallS * 1000));
}

export function percent(share) {
  return `${Math.round(share * 100)} %`;
}

export function count(number) {
  return Number(number ?? 0).toLocaleString("en").replaceAll(",", " ");
}

export function seconds(value) {
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

/** Return a message without its source's name at the start, for places that show the name already. */
export function without(name, text) {
  return text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text;
}

/** Return the colour of a class, the same everywhere on the page. */
export function colourOf(classId) {
  return `var(--c${classId % 8})`;
}

export function reducedMotion() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Fill a list of bars, one per class. If all classes are shown, their order is fixed, so that rows do not jump. */
export function showBars(list, top, classes) {
  const best = top[0].class_id;
  const shown = classes > 0 && top.length >= classes ? [...top].sort((a, b) => a.class_id - b.class_id) : top;
  while (list.children.length > shown.length) list.lastElementChild.remove();
  while (list.children.length < shown.length) {
    const row = make("li", "", "", make("span", "class", "", make("span")), make("span", "bar", "", make("i")));
    row.append(make("span", "value"));
    list.append(row);
  }
  shown.forEach((guess, place) => {
    const row = list.children[place];
    const name = row.querySelector(".class span");
    setText(name, guess.label);
    name.title = guess.label;
    row.style.setProperty("--colour", colourOf(guess.class_id));
    row.querySelector("i").style.width = `${guess.confidence * 100}%`;
    setText(row.querySelector(".value"), percent(guess.confidence));
    row.classList.toggle("best", guess.class_id === best);
  });
}

/** Fetch JSON; throw an Error with the server's message for an error response. */
export async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (answer.status === 401) signIn();
  if (!answer.ok) {
    let refused = {};
    try {
      refused = await answer.json();
    } catch {
      // Not JSON: the response comes from a proxy.
    }
    const text = refused.error || `the server returned status ${answer.status}`;
    throw Object.assign(new Error(text), { status: answer.status, fields: refused.fields ?? {} });
  }
  return answer.status === 204 ? null : answer.json();
}

export function signIn() {
  location.assign("/login");
}
