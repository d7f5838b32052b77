// Sets the theme before the first paint. The style sheet makes "auto" follow the system.
"use strict";
(() => {
  let theme = "auto";
  try {
    theme = localStorage.getItem("adafocus-theme") || "auto";
  } catch {
    // Storage may be blocked; then the choice lasts until the page is closed.
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";
})();
