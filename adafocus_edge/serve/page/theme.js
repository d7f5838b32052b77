// Sets the theme before anything is drawn. "auto" follows the system, by the style sheet alone.
"use strict";
(() => {
  let theme = "auto";
  try {
    theme = localStorage.getItem("adafocus-theme") || "auto";
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";
})();
