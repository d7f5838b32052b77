// Classification of a file: uploads it with a progress bar, then shows the result and the frames that the model looked at.

import { PATCH_COLOUR, count, make, percent, showBars, signIn } from "./dom.js";

const LARGE_PX = 960;

export class Upload {
  constructor(page) {
    this.page = page;
    this.place = document.getElementById("upload");
    this.input = document.getElementById("file");
    this.zone = document.getElementById("drop");
    this.request = null;
    this.input.addEventListener("change", () => {
      if (this.input.files[0]) this.send(this.input.files[0]);
      this.input.value = "";
    });
    let depth = 0;
    const over = (event, inside) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      depth = inside === null ? depth : Math.max(0, depth + inside);
      this.zone.classList.toggle("over", depth > 0);
    };
    // Accept drops anywhere: by default, the browser would open a file that misses the zone in place of the page.
    addEventListener("dragenter", (event) => over(event, 1));
    addEventListener("dragleave", (event) => over(event, -1));
    addEventListener("dragover", (event) => over(event, null));
    addEventListener("drop", (event) => {
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      depth = 0;
      this.zone.classList.remove("over");
      this.send(event.dataTransfer.files[0]);
    });
  }

  send(file) {
    this.request?.abort();
    const limit = this.page.hello.max_upload_mb * 1e6;
    const stop = make("button", "", "Cancel");
    stop.type = "button";
    const head = make("div", "head", "", make("span", "name", file.name), stop);
    head.firstElementChild.title = file.name;
    const bar = make("progress");
    bar.max = 1;
    bar.setAttribute("aria-label", `Uploading ${file.name}`);
    const note = make("p", "hint", "Uploading");
    const box = make("div", "upload", "", head, bar, note);
    this.place.replaceChildren(box);
    const end = (text) => {
      bar.remove();
      note.remove();
      stop.textContent = "Close";
      stop.onclick = () => this.place.replaceChildren();
      if (text) {
        const problem = make("p", "problem", text);
        problem.setAttribute("role", "alert");
        box.append(problem);
      }
    };
    if (file.size > limit) {
      end(`${file.name}: ${Math.ceil(file.size / 1e6)} MB exceed the maximum of ${this.page.hello.max_upload_mb} MB`);
      return;
    }
    const request = (this.request = new XMLHttpRequest());
    stop.onclick = () => {
      request.abort();
      this.place.replaceChildren();
    };
    request.open("POST", "/api/classify?frames=1");
    request.setRequestHeader("X-File-Name", encodeURIComponent(file.name));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) bar.value = event.loaded / event.total;
      note.textContent = `Uploading: ${percent(bar.value)} of ${count(Math.ceil(file.size / 1e6))} MB`;
    };
    request.upload.onload = () => {
      bar.removeAttribute("value");
      note.textContent = "Classifying";
    };
    request.onerror = () => end(`${file.name}: the connection was lost during the upload`);
    request.onload = () => {
      if (request.status === 401) signIn();
      const answer = request.response;
      end(request.status === 200 ? "" : answer?.error ?? `${file.name}: the server returned status ${request.status}`);
      if (request.status === 200) this.show(box, answer);
    };
    request.send(file);
  }

  show(box, result) {
    const verdict = make("div", "verdict", "", make("strong", "label", result.label), make("span", "confidence", percent(result.confidence)));
    verdict.append(make("span", "standing", `${Math.round(result.latency_ms)} ms`));
    const bars = make("ol", "bars");
    bars.setAttribute("aria-label", "Most likely classes");
    showBars(bars, result.top.slice(0, 5), this.page.labels.length);
    const steps = make("ol", "steps");
    steps.setAttribute("aria-label", "Glimpses");
    box.append(verdict, bars, make("p", "hint", "Where the model looked, and its confidence after each glimpse:"), steps);
    this.showPictures(result, steps);
  }

  async showPictures(result, list) {
    for (const step of result.steps) {
      const bytes = Uint8Array.from(atob(step.picture), (letter) => letter.charCodeAt(0));
      const picture = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
      list.append(this.glimpse(result, step, picture));
    }
  }

  /** Return the entry of one glimpse: a button that shows its frame larger. */
  glimpse(result, step, picture) {
    const when = step.time_s === null ? "" : ` at ${step.time_s.toFixed(1)} s`;
    const title = `Glimpse ${step.step + 1} of ${result.steps.length}${when}: ${step.label}, ${percent(step.confidence)}`;
    const open = make("button", "", "", drawn(picture, step.box, picture.width, picture.width / 50), make("span", "", percent(step.confidence)));
    open.type = "button";
    open.title = title;
    open.setAttribute("aria-label", `${percent(step.confidence)}. ${title}`);
    open.addEventListener("click", () => {
      const large = drawn(picture, step.box, LARGE_PX, 3);
      large.setAttribute("role", "img");
      large.setAttribute("aria-label", "The frame, with the patch that the model looked at");
      this.page.openGlimpse(result.source, title, large);
    });
    return make("li", "", "", open);
  }
}

/** Return a canvas of this width with a frame and the patch on it, in lines this wide; `box` is in fractions of the frame. */
function drawn(picture, [left, top, right, bottom], width, line) {
  const canvas = make("canvas");
  canvas.width = width;
  canvas.height = Math.max(1, Math.round((picture.height * width) / picture.width));
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const patch = [left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height];
  for (const [colour, wide] of [["rgba(5, 7, 10, 0.55)", 1.8 * line], [PATCH_COLOUR, line]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = wide;
    pen.strokeRect(...patch);
  }
  return canvas;
}
