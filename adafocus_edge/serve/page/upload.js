// Classification of a file: uploads it with a progress bar, then shows the result and where the model looked.

import { count, make, percent, showBars, signIn } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

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
    request.open("POST", "/api/classify");
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
    steps.setAttribute("aria-label", "Glimpses: position of the patch, and confidence after each");
    for (const step of result.steps) steps.append(this.step(step));
    box.append(verdict, bars, make("p", "hint", "Where the model looked, and its confidence after each glimpse:"), steps);
  }

  step(step) {
    const side = this.page.model.frame_size;
    const [y, x, size] = step.patch;
    const shape = (name, attributes) => {
      const element = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const drawing = shape("svg", { viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" });
    drawing.append(shape("rect", { class: "frame", x: 3, y: 3, width: side - 6, height: side - 6 }));
    drawing.append(shape("rect", { class: "patch", x, y, width: size, height: size }));
    const item = make("li", "", "", drawing, make("span", "", percent(step.confidence)));
    item.title = `Glimpse ${step.step + 1}${step.time_s === null ? "" : ` at ${step.time_s.toFixed(1)} s`}: ${step.label}, ${percent(step.confidence)}`;
    return item;
  }
}
