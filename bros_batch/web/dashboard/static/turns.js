// The elements of a conversation: questions, and answers as they grow.

import { make } from "./dom.js";
import { FormattedText } from "./formatted_text.js";
import { label } from "./text_files.js";

// A longer question is scrolled on a phone, and so has to be reached with the keyboard.
const LONG_CHARS = 400;
const LONG_LINES = 8;

function button(css, text) {
  const element = make("button", `plain ${css}`, text);
  element.type = "button";
  return element;
}

function turn(css, name, ...buttons) {
  const element = make("article", css);
  element.setAttribute("aria-label", name);
  const tools = make("div", "tools");
  tools.append(...buttons);
  element.append(tools);
  return element;
}

// A question, with the texts of its files folded up.
export function questionTurn(question) {
  const element = turn("turn asked", "You", button("copy", "Copy"), button("edit", "Edit"));
  const tools = element.lastChild;
  for (const file of question.files ?? []) {
    const folded = make("details", "file");
    const text = make("pre", "", file.text);
    text.tabIndex = 0;
    folded.append(make("summary", "", label(file)), text);
    tools.before(folded);
  }
  if (question.content) {
    const text = make("div", "message mine", question.content);
    if (question.content.length > LONG_CHARS || question.content.split("\n").length > LONG_LINES) text.tabIndex = 0;
    tools.before(text);
  }
  return element;
}

// An answer. Its parts exist as soon as there is something in them.
export class AnswerTurn {
  element = turn("turn answered", "Answer", make("span", "note", ""), button("copy", "Copy"), button("again", "Regenerate"));
  #tools = this.element.lastChild;
  #note = this.#tools.firstChild;
  #thought = null;
  #said = null;
  #text = null;
  #calls = [];

  // Shows an answer so far.
  show(answer, isComplete) {
    this.element.classList.toggle("waiting", !isComplete && !answer.content && !answer.calls.length);
    if (answer.thought) {
      this.#thought ??= this.#addThought();
      this.#thought.textContent = answer.thought;
    }
    if (answer.content) {
      this.#said ??= this.#add(make("div", `message theirs${answer.isJson ? " json" : ""}`));
      if (answer.isJson) {
        this.#said.textContent = indented(answer.content);
      } else {
        this.#text ??= new FormattedText(this.#said);
        if (isComplete) this.#text.finish(answer.content);
        else this.#text.show(answer.content);
      }
    }
    for (const [place, call] of answer.calls.entries()) {
      this.#calls[place] ??= this.#add(make("div", "message theirs json"));
      this.#calls[place].textContent = call;
    }
    this.#note.textContent = isComplete ? words(answer) : answer.thought || answer.content ? "" : "Waiting for the first token …";
  }

  #add(element) {
    this.#tools.before(element);
    return element;
  }

  #addThought() {
    const folded = make("details", "thought");
    folded.append(make("summary", "", "Reasoning"), make("div"));
    this.element.prepend(folded);
    return folded.lastChild;
  }
}

// How an answer came, and how it ended.
function words({ content, thought, calls, firstMs, lastMs, tokens, end }) {
  const parts = [];
  if (!content && !calls.length) parts.push(thought ? "only reasoning" : "the model wrote nothing");
  if (firstMs !== null) parts.push(`first token after ${firstMs < 1000 ? `${Math.round(firstMs)} ms` : `${(firstMs / 1000).toFixed(1)} s`}`);
  if (tokens) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens > 1 && lastMs > firstMs) parts.push(`${Math.round(((tokens - 1) / (lastMs - firstMs)) * 1000)} tokens/s`);
  if (end === "stopped") parts.push("stopped");
  if (end === "failed") parts.push("not complete");
  if (end === "length") parts.push("cut at the token limit");
  return parts.join(" · ");
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
