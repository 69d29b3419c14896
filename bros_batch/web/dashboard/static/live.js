// The live parts of a page. Its URL is also its event stream: HTML of the parts that changed, once per second. A hidden
// page has none.

import { byId, setText } from "./dom.js";
import { morph } from "./morph.js";

const CHECK_MS = 250;
const RETRY_MS = 1000;
const SILENT_AFTER_MS = 2500; // the server sends an event each second, even if nothing has changed
const REOPEN_AFTER_MS = 8000;

let stream = null;
let retry = 0;
let freshAt = Date.now(); // when the data on the page were read
let lastEventAt = Date.now();
let isSilent = false;
let sessionEnded = false;
let engineState = null; // the header's note, as the server last sent it

// Opens the stream of the page's present URL. Its first event has every live part.
export function connect() {
  disconnect();
  if (document.hidden || !("live" in document.body.dataset)) return;
  lastEventAt = Date.now();
  stream = new EventSource(location.pathname + location.search);
  stream.onmessage = ({ data }) => {
    const { fragments, problem } = data === "[DONE]" ? {} : JSON.parse(data);
    if (fragments) receive(fragments, problem);
    else lost(); // the server stops, or failed
  };
  stream.onerror = lost;
}

// Calls a function after each event, once the page has been updated.
export function onFresh(call) {
  document.addEventListener("fresh", call);
}

// Goes to another URL of the same page without loading it. `isSmall` changes replace the entry in the history.
export function show(url, isSmall = false) {
  if (isSmall) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  connect();
}

// Makes links with `data-show` change the URL without loading the page. If the attribute names a field of the query, only
// this field changes, and the page is the first one: the others may have changed since the link was made. `change` is
// called with the new query, also when a person goes back or forward.
export function showOnClick(change = () => {}) {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-show]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(urlOf(link));
    change(new URLSearchParams(location.search));
  });
  window.addEventListener("popstate", () => {
    connect();
    change(new URLSearchParams(location.search));
  });
}

function urlOf(link) {
  const name = link.dataset.show;
  if (!name) return link.href;
  const url = new URL(location.href);
  const value = new URL(link.href).searchParams.get(name);
  for (const each of [name, "after", "before"]) url.searchParams.delete(each);
  if (value) url.searchParams.set(name, value);
  return url.href;
}

function disconnect() {
  clearTimeout(retry);
  stream?.close();
  stream = null;
}

async function lost() {
  disconnect();
  retry = setTimeout(connect, RETRY_MS);
  showNoConnection();
  // An event stream does not tell why it failed.
  const headers = { Accept: "application/json" };
  const answer = await fetch(location.href, { method: "HEAD", headers }).catch(() => null);
  sessionEnded = answer?.status === 401;
  if (!stream) showNoConnection();
}

function showNoConnection() {
  const dot = document.createElement("i");
  dot.className = "dot away";
  byId("engine_state").replaceChildren(dot, "no connection");
  showStale(sessionEnded ? "Your session has ended. Reload the page to log in." : "The server is not reachable.");
}

// Says that the data are old, and dims them.
function showStale(problem) {
  const waiting = document.querySelector("[data-waiting]");
  const seen = waiting ? "" : ` What you see is from ${new Date(freshAt).toLocaleTimeString([], { hourCycle: "h23" })}.`;
  setText(byId("stale"), problem + seen);
  document.body.classList.add("stale-data");
}

function receive(fragments, problem) {
  lastEventAt = Date.now();
  if (problem) {
    showStale(problem);
  } else {
    freshAt = Date.now();
    setText(byId("stale"), "");
    document.body.classList.remove("stale-data");
  }
  engineState = fragments.engine_state ?? engineState;
  if (isSilent && engineState) fragments.engine_state = engineState;
  isSilent = false;
  for (const [id, html] of Object.entries(fragments)) {
    const part = byId(id);
    if (!part) {
      location.reload(); // this is the page that stands in for one without data
      return;
    }
    const fresh = part.cloneNode(false);
    fresh.innerHTML = html;
    morph(part, fresh);
  }
  document.dispatchEvent(new Event("fresh"));
}

setInterval(() => {
  if (!stream) return;
  const silentMs = Date.now() - lastEventAt;
  if (silentMs > REOPEN_AFTER_MS) lost();
  else if (silentMs > SILENT_AFTER_MS && !isSilent) {
    isSilent = true;
    showNoConnection();
  }
}, CHECK_MS);

document.addEventListener("visibilitychange", connect);
window.addEventListener("pageshow", ({ persisted }) => persisted && connect());
window.addEventListener("pagehide", disconnect);
