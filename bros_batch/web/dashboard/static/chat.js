// The chat page: a conversation that exists only in this page, and whose answers arrive as streams.

import { post } from "./actions.js";
import { byId } from "./dom.js";
import "./page.js";

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

startChat(byId("ask"));
