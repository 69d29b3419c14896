// A text that grows, shown as the Markdown that it is. The server formats it, a few times per second at most; what has
// arrived since is shown as plain text.

import { post } from "./actions.js";
import { make } from "./dom.js";
import { morph } from "./morph.js";

const PAUSE_MS = 300;
const PAUSES_PER_FORMATTING = 5; // so that long texts do not keep the server busy

let turn = Promise.resolve(); // one text is formatted at a time

export class FormattedText {
  #element;
  #text = "";
  #numFormatted = 0;
  #tail = make("span", "tail");
  #timer = 0;
  #isFormatting = false;
  #isComplete = false;
  #isGivenUp = false;

  constructor(element) {
    this.#element = element;
  }

  // Shows a text that begins with the one that is shown.
  show(text) {
    this.#text = text;
    this.#showTail();
    if (!this.#timer && !this.#isFormatting && !this.#isGivenUp) this.#timer = setTimeout(() => this.#format(), PAUSE_MS);
  }

  // Shows the whole text, formatted as soon as possible.
  finish(text) {
    this.#isComplete = true;
    this.#text = text;
    this.#showTail();
    clearTimeout(this.#timer);
    if (!this.#isFormatting && !this.#isGivenUp) this.#format();
  }

  async #format() {
    this.#timer = 0;
    this.#isFormatting = true;
    const begun = performance.now();
    turn = turn.then(() => this.#formatOnce());
    await turn;
    this.#isFormatting = false;
    if (this.#numFormatted === this.#text.length || this.#isGivenUp) return;
    const pause = this.#isComplete ? 0 : Math.max(PAUSE_MS, PAUSES_PER_FORMATTING * (performance.now() - begun));
    this.#timer = setTimeout(() => this.#format(), pause);
  }

  async #formatOnce() {
    const text = this.#text;
    const wasComplete = this.#isComplete;
    try {
      const { html } = await (await post("/chat/markdown", JSON.stringify({ text }))).json();
      const fresh = make("div");
      fresh.innerHTML = html;
      addControls(fresh);
      this.#tail.remove();
      morph(this.#element, fresh);
      this.#element.classList.add("formatted");
      this.#numFormatted = text.length;
      this.#showTail();
    } catch (error) {
      // What is not formatted stays plain: the text is what matters.
      this.#isGivenUp = wasComplete || error.code === "too_large";
    }
  }

  #showTail() {
    this.#tail.textContent = this.#text.slice(this.#numFormatted);
    if (!this.#tail.textContent) this.#tail.remove();
    else if (!this.#element.contains(this.#tail)) lastBlock(this.#element).append(this.#tail);
  }
}

// The block in which a text goes on.
function lastBlock(element) {
  let last = element;
  while (last.lastElementChild?.matches("p, ul, ol, li, blockquote, h1, h2, h3, h4, h5, h6, .code, pre, pre > code")) last = last.lastElementChild;
  return last;
}

// Code can be copied, and what is wider than the page is scrolled on its own, also with the keyboard.
function addControls(fresh) {
  for (const pre of fresh.querySelectorAll("pre")) {
    pre.tabIndex = 0;
    const block = make("div", "code");
    pre.replaceWith(block);
    const button = make("button", "copy-code", "Copy");
    button.type = "button";
    button.setAttribute("aria-label", "Copy code");
    block.append(button, pre);
  }
  for (const table of fresh.querySelectorAll("table")) {
    table.className = "plain";
    const block = make("div", "scroll");
    block.tabIndex = 0;
    table.replaceWith(block);
    block.append(table);
  }
}
