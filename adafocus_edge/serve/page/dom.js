// Small helpers: elements whose text is always set as text, and numbers and times as people read them.

/** Make an element with a class and text, and put others into it. */
export function make(tag, className = "", text = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

/** Change an element's text only where it differs, so that nothing is read out or laid out in vain. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const clockFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

/** The time of day of seconds since 1970. */
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

/** A message without the name of its source before it, where that is beside it already. */
export function without(name, text) {
  return text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text;
}

/** The colour of a class, the same everywhere on the page. */
export function colourOf(classId) {
  return `var(--c${classId % 8})`;
}

export function still() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Fill a list of bars, one per class. Few classes keep their order, so that rows do not jump. */
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
    say(name, guess.label);
    name.title = guess.label;
    row.style.setProperty("--colour", colourOf(guess.class_id));
    row.querySelector("i").style.width = `${guess.confidence * 100}%`;
    say(row.querySelector(".value"), percent(guess.confidence));
    row.classList.toggle("best", guess.class_id === best);
  });
}

/** Fetch JSON; an answer that tells an error becomes an exception with its one line. */
export async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (answer.status === 401) signIn();
  if (!answer.ok) {
    let text = `the server answered with ${answer.status}`;
    try {
      text = (await answer.json()).error || text;
    } catch {
      // No JSON: something between here and the server answered.
    }
    throw Object.assign(new Error(text), { status: answer.status });
  }
  return answer.status === 204 ? null : answer.json();
}

export function signIn() {
  location.assign("/login");
}
