// Sets the theme before the first paint, and when it is chosen. The style sheet makes "auto" follow the system.
"use strict";
(() => {
  const root = document.documentElement;
  let theme = "auto";
  try {
    theme = localStorage.getItem("adafocus-theme") || "auto";
  } catch {
    // Storage may be blocked; then the choice lasts until the page is closed.
  }
  root.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";

  document.addEventListener("DOMContentLoaded", () => {
    for (const input of document.querySelectorAll("#theme input")) {
      input.checked = input.value === root.dataset.theme;
      input.addEventListener("change", () => {
        root.dataset.theme = input.value;
        try {
          localStorage.setItem("adafocus-theme", input.value);
        } catch {
          // As above.
        }
      });
    }
  });
})();
