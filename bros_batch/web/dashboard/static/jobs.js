// The jobs page: its search, status, order and page are in the URL, and selected jobs can be changed together.

import { post, toast } from "./actions.js";
import { byId } from "./dom.js";
import { connect, onFresh, show, showOnClick } from "./live.js";
import "./page.js";

const FILTER_DELAY_MS = 150;
const AT_ONCE = 25;

// The URL ------------------------------------------------------------------------------------------------------------

const filters = byId("filters");
const { search, sort } = filters.elements;
let timer = 0;
let isTyping = false; // what is typed in one go is one step of the history

function apply() {
  const query = new URLSearchParams(location.search);
  for (const name of ["after", "before"]) query.delete(name);
  for (const [name, value] of [["search", search.value.trim()], ["sort", sort.value]]) {
    if (value && value !== "newest") query.set(name, value);
    else query.delete(name);
  }
  const url = query.size ? `/?${query}` : "/";
  if (url !== location.pathname + location.search) show(url, isTyping);
  isTyping = true;
}

function applySoon() {
  clearTimeout(timer);
  timer = setTimeout(apply, FILTER_DELAY_MS);
}

search.addEventListener("input", applySoon);
search.addEventListener("blur", () => (isTyping = false));
sort.addEventListener("change", () => {
  isTyping = false;
  apply();
  isTyping = false;
});
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  apply();
});

showOnClick((query) => {
  isTyping = false;
  search.value = query.get("search") ?? "";
  sort.value = query.get("sort") ?? "newest";
  selectNone();
});

// Selected jobs ------------------------------------------------------------------------------------------------------

const WORDS = {
  pause: { button: "Pause", done: "paused", note: "No row of them is computed until they are resumed." },
  resume: { button: "Resume", done: "resumed", note: "" },
  rerun: { button: "Run again", done: "started again", note: "Only their rows without a result are computed." },
  cancel: { button: "Cancel", done: "cancelled", note: "Finished rows keep their results; the others will not be run." },
};
const bar = byId("bulk");
const dialog = byId("bulk-dialog");
let isAll = false; // all that match, also on other pages
let chosen = "";

const boxes = () => [...document.querySelectorAll("#job-rows input")];
const selected = () => boxes().filter((box) => box.checked).map((box) => box.value);
const matching = () => Number(document.querySelector("table.jobs")?.dataset.matching ?? 0);
const jobsOf = (count) => `${count.toLocaleString("en").replaceAll(",", "\u202f")} ${count === 1 ? "job" : "jobs"}`;

function showSelection() {
  const all = boxes();
  const count = isAll ? matching() : selected().length;
  const isWholePage = all.length > 0 && all.every((box) => box.checked);
  bar.hidden = count === 0;
  byId("bulk-count").textContent = `${jobsOf(count)} selected`;
  byId("bulk-all").hidden = isAll || !isWholePage || matching() <= all.length;
  byId("bulk-all").textContent = `Select all ${jobsOf(matching())}`;
  const head = byId("pick-page");
  if (!head) return;
  head.checked = isWholePage;
  head.indeterminate = count > 0 && !isWholePage;
}

function selectNone() {
  isAll = false;
  for (const box of boxes()) box.checked = false;
  showSelection();
}

let lastBox = null;
document.addEventListener("click", (event) => {
  const box = event.target;
  if (box.id === "pick-page") {
    isAll = false;
    for (const each of boxes()) each.checked = box.checked;
  } else if (box.matches("#job-rows input")) {
    isAll = false;
    const all = boxes();
    const [from, to] = [all.indexOf(lastBox), all.indexOf(box)].sort((a, b) => a - b);
    if (event.shiftKey && from >= 0) for (const each of all.slice(from, to + 1)) each.checked = box.checked;
    lastBox = box;
  } else {
    return;
  }
  showSelection();
});
byId("bulk-all").addEventListener("click", () => {
  isAll = true;
  showSelection();
});
byId("bulk-none").addEventListener("click", () => {
  selectNone();
  byId("pick-page")?.focus();
});
onFresh(() => {
  if (isAll) for (const box of boxes()) box.checked = true;
  showSelection();
});

bar.addEventListener("click", (event) => {
  chosen = event.target.dataset.change ?? "";
  if (!chosen) return;
  const { button, note } = WORDS[chosen];
  const what = jobsOf(isAll ? matching() : selected().length);
  const question = document.createElement("b");
  question.textContent = `${button} ${what}?`;
  byId("bulk-question").replaceChildren(question, ` ${note}`);
  byId("bulk-yes").textContent = `${button} ${what}`;
  byId("bulk-yes").className = chosen === "cancel" ? "danger" : "primary";
  dialog.showModal();
});
byId("bulk-no").addEventListener("click", () => dialog.close());
byId("bulk-yes").addEventListener("click", async () => {
  dialog.close();
  const buttons = [...bar.querySelectorAll("button")];
  for (const each of buttons) each.disabled = true;
  const { done } = WORDS[chosen];
  let changed = 0;
  const refused = [];
  try {
    for await (const answer of isAll ? changeMatching(chosen) : changeSelected(chosen, selected())) {
      changed += answer.changed;
      refused.push(...answer.refused);
      byId("bulk-count").textContent = `${jobsOf(changed)} ${done} …`;
    }
    const others = refused.length ? `; ${jobsOf(refused.length)} left as they were` : "";
    const reason = !changed && refused.length === 1 ? ` (${refused[0].message})` : "";
    toast(`${jobsOf(changed)} ${done}${others}${reason}.`, changed > 0);
    selectNone();
  } catch (error) {
    toast(`${changed ? `${jobsOf(changed)} ${done}. Then: ` : ""}${error.message}`);
  }
  for (const each of buttons) each.disabled = false;
  connect();
});

async function* changeSelected(change, jobs) {
  for (let at = 0; at < jobs.length; at += AT_ONCE) {
    yield await (await post("/jobs", JSON.stringify({ change, jobs: jobs.slice(at, at + AT_ONCE) }))).json();
  }
}

async function* changeMatching(change) {
  const query = new URLSearchParams(location.search);
  const which = { change, search: query.get("search") ?? "", status: query.get("status") ?? "" };
  for (let after = ""; after !== null; ) {
    const answer = await (await post("/jobs", JSON.stringify({ ...which, after }))).json();
    yield answer;
    ({ after } = answer);
  }
}

showSelection();
