"use strict";
// Each page's URL is also its event stream: HTML of the parts that changed, once per second. A hidden page has none.

const RETRY_MS = 1000;
const STALE_AFTER_MS = 8000; // the server itself waits for the engine for up to 7 s
const FILTER_DELAY_MS = 200;
const TOAST_MS = 6000;

const byId = (id) => document.getElementById(id);
let stream = null;
let retry = 0;
let freshAt = Date.now(); // when the data on the page were read
let lastEventAt = Date.now();
let sessionEnded = false;

function connect() {
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
  byId("engine_state").innerHTML = '<i class="dot away"></i>no connection';
  showStale(sessionEnded ? "Your session has ended. Reload the page to log in." : "The server is not reachable.");
}

function showStale(problem) {
  const waiting = document.querySelector("[data-waiting]");
  const seen = waiting ? "" : ` What you see is from ${new Date(freshAt).toLocaleTimeString([], { hourCycle: "h23" })}.`;
  setText(byId("stale"), problem + seen);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

function receive(fragments, problem) {
  if (problem) {
    showStale(problem);
  } else {
    freshAt = Date.now();
    setText(byId("stale"), "");
  }
  lastEventAt = Date.now();
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
}

setInterval(() => {
  if (stream && Date.now() - lastEventAt > STALE_AFTER_MS) lost();
}, RETRY_MS);

// Makes the children of `old` equal to those of `fresh`, keeping each element that stays what it is: with it stay the
// keyboard focus, the selection and the scroll position. Elements with an id are matched by it, others by place.
function morph(old, fresh) {
  const wanted = new Set(Array.from(fresh.children, (each) => each.id));
  for (const each of [...old.children]) if (each.id && !wanted.has(each.id)) each.remove();
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const found = next.id ? [...old.children].find((each) => each.id === next.id) : place;
    if (found && !(found.id && !next.id) && found.nodeName === next.nodeName) {
      if (found === place) place = place.nextSibling;
      else old.insertBefore(found, place);
      update(found, next);
    } else {
      old.insertBefore(next, place);
    }
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morph(old, fresh);
}

document.addEventListener("visibilitychange", connect);
window.addEventListener("pageshow", ({ persisted }) => persisted && connect());
window.addEventListener("pagehide", disconnect);

// Buttons ------------------------------------------------------------------------------------------------------------

let toastTimer = 0;

function toast(message) {
  setText(byId("toast"), message);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => setText(byId("toast"), ""), TOAST_MS);
}

async function post(url, body, signal) {
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(url, { method: "POST", headers, body, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server is not reachable.");
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({}));
    throw new Error(error?.message ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches(".change")) return;
  event.preventDefault();
  form.closest("dialog")?.close();
  try {
    await post(form.action);
    connect(); // the first event shows the change
  } catch (error) {
    toast(error.message);
  }
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) byId(opener.dataset.opens).showModal();
  const more = event.target.closest("#more");
  if (more && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    show(more.href);
  }
});

// Filters ------------------------------------------------------------------------------------------------------------

function show(url) {
  history.replaceState(null, "", url);
  connect();
}

const filters = byId("filters");
if (filters) {
  let timer = 0;
  const apply = () => {
    const fields = [...new FormData(filters)].filter(([, value]) => value.trim());
    const query = new URLSearchParams(fields).toString();
    show(query ? `/?${query}` : "/");
  };
  const applySoon = () => {
    clearTimeout(timer);
    timer = setTimeout(apply, FILTER_DELAY_MS);
  };
  filters.addEventListener("input", applySoon);
  filters.addEventListener("change", applySoon); // a driven browser fires only this for a select
  filters.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    apply();
  });
}

// Chat ---------------------------------------------------------------------------------------------------------------

// The objects of an event stream, until its [DONE].
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection to the server was lost.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const each of events) {
      if (each.startsWith(":")) continue; // a comment of a stream that waits
      const data = each.slice("data: ".length);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}

// JSON, which may not be complete yet, with one line per value. It stays text, so that no number is rounded.
function indented(json) {
  let depth = 0;
  const line = () => "\n" + "  ".repeat(depth);
  return json.replace(/"(?:[^"\\]|\\.)*("|$)|\{\s*\}|\[\s*\]|[{}[\],:]|\s+/gs, (part) => {
    if (part[0] === '"') return part;
    if (part === "{" || part === "[") return (depth++, part + line());
    if (part === "}" || part === "]") return (depth--, line() + part);
    if (part === ",") return part + line();
    return part === ":" ? ": " : part.trim() && part[0] + part.at(-1);
  });
}

// The schema that the person wants the answers to follow, or undefined. Throws if it is not JSON.
function schemaIn(field) {
  if (!field.value.trim()) return undefined;
  try {
    return JSON.parse(field.value);
  } catch (error) {
    field.closest("details").open = true;
    throw new Error(`The schema is not JSON: ${error.message}`);
  }
}

function startChat(form) {
  const field = form.elements.question;
  const button = form.querySelector("button");
  const talk = byId("talk");
  const messages = [];
  let stop = null;

  const add = (css, text) => {
    const element = document.createElement("div");
    element.className = css;
    element.textContent = text;
    talk.append(element);
    element.scrollIntoView({ block: "nearest" });
    return element;
  };

  const note = (firstMs, tokens, wholeMs, stopped) => {
    const first = firstMs === null ? "no text" : `first token after ${Math.round(firstMs)} ms`;
    const count = tokens === null ? "" : ` · ${tokens} tokens`;
    return `${first}${count} in ${(wholeMs / 1000).toFixed(1)} s${stopped ? " · stopped" : ""}`;
  };

  // Adds the reasoning, folded up, before the answer; or, without an answer, a tool call after everything else.
  const beforeAnswer = (answer, tag, css) => {
    const element = document.createElement(tag);
    element.className = css;
    if (tag === "details") element.append(document.createElement("summary"), document.createElement("div"));
    if (element.firstChild) element.firstChild.textContent = "Reasoning";
    talk.insertBefore(element, answer);
    return element;
  };

  async function ask(text) {
    const mine = add("message mine", text);
    const theirs = add("message theirs", "");
    const calls = [];
    let thought = null;
    let said = "";
    const begun = performance.now();
    let first = null;
    let tokens = null;
    let stopped = false;
    messages.push({ role: "user", content: text });
    stop = new AbortController();
    button.textContent = "Stop";
    talk.setAttribute("aria-busy", "true");
    try {
      const schema = schemaIn(form.elements.schema);
      if (schema) theirs.classList.add("json");
      const answer = await post("/chat", JSON.stringify({ messages, schema }), stop.signal);
      for await (const chunk of eventsOf(answer)) {
        const delta = chunk.choices[0]?.delta ?? {};
        const piece = delta.content;
        if (piece || delta.reasoning_content || delta.tool_calls) first ??= performance.now() - begun;
        if (delta.reasoning_content) {
          thought ??= beforeAnswer(theirs, "details", "thought");
          thought.lastChild.textContent += delta.reasoning_content;
        }
        for (const call of delta.tool_calls ?? []) {
          if (call.function.name) calls.push(beforeAnswer(null, "div", "message theirs json"));
          calls.at(-1).textContent += (call.function.name ? `${call.function.name} ` : "") + (call.function.arguments ?? "");
        }
        if (piece) {
          said += piece;
          theirs.textContent = schema ? indented(said) : said;
          theirs.scrollIntoView({ block: "nearest" });
        }
        tokens = chunk.usage?.completion_tokens ?? tokens;
      }
    } catch (error) {
      stopped = error.name === "AbortError";
      if (!stopped) {
        for (const each of [mine, theirs, thought, ...calls]) each?.remove();
        messages.pop();
        field.value ||= text;
        add("note wrong", error.message);
        return;
      }
    } finally {
      stop = null;
      button.textContent = "Send";
      talk.removeAttribute("aria-busy");
    }
    messages.push({ role: "assistant", content: said });
    add("note", note(first, tokens, performance.now() - begun, stopped));
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    field.focus();
    const text = field.value.trim();
    if (stop) {
      stop.abort();
    } else if (text) {
      talk.querySelector(".note.wrong")?.remove();
      field.value = "";
      ask(text);
    }
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!stop) form.requestSubmit();
  });
}

if (byId("ask")) startChat(byId("ask"));
connect();
