// The jobs page: its filters are in the URL.

import { byId } from "./dom.js";
import { show } from "./live.js";
import "./page.js";

const FILTER_DELAY_MS = 200;

const filters = byId("filters");
let timer = 0;

function apply() {
  const fields = [...new FormData(filters)].filter(([, value]) => value.trim());
  const query = new URLSearchParams(fields).toString();
  show(query ? `/?${query}` : "/", true);
}

function applySoon() {
  clearTimeout(timer);
  timer = setTimeout(apply, FILTER_DELAY_MS);
}

filters.addEventListener("input", applySoon);
filters.addEventListener("change", applySoon); // a driven browser fires only this for a select
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  apply();
});

document.addEventListener("click", (event) => {
  const more = event.target.closest("#more");
  if (more && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    show(more.href, true);
  }
});
