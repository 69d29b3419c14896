// One conversation: its turns on the page, and the answer that is under way.

import { answerTo } from "./chat_stream.js";
import { make } from "./dom.js";
import { contentOf } from "./text_files.js";
import { AnswerTurn, questionTurn } from "./turns.js";

const END_PX = 120;

export class Talk {
  element = make("div", "talk");
  #turns = []; // the elements of the messages
  #stop = null;
  #frame = 0;

  // `page` has what a talk needs of the page: `settings()` of a request, `changed(talk)` and `focus()`.
  constructor(conversation, page) {
    this.conversation = conversation;
    this.page = page;
    for (const message of conversation.messages) this.#add(message);
  }

  get isRunning() {
    return this.#stop !== null;
  }

  stop() {
    this.#stop?.abort();
  }

  // Asks a question. If no answer begins, `giveBack` is called, and the question is no longer part of the conversation.
  ask(question, giveBack, retry) {
    return this.#run([question], [], giveBack, retry);
  }

  // Asks the last question again. The old answer stays if no new one begins.
  regenerate() {
    return this.#run([], this.#take(1), () => {}, () => this.regenerate());
  }

  // Asks another question instead of the last one.
  #replace(content) {
    const { files } = this.conversation.messages.at(-2);
    const retry = () => this.element.querySelector(".edit-form").requestSubmit();
    return this.#run([{ role: "user", content, files }], this.#take(2), () => this.edit(content), retry);
  }

  // Opens a form with the last question in place of its text.
  edit(content = this.conversation.messages.at(-2)?.content) {
    if (this.isRunning || this.conversation.messages.length < 2) return;
    this.#closeEdit();
    const form = make("form", "edit-form");
    const field = make("textarea");
    field.value = content;
    field.setAttribute("aria-label", "Your message, changed");
    const cancel = make("button", "", "Cancel");
    cancel.type = "button";
    const choices = make("div", "choices");
    choices.append(cancel, make("button", "primary", "Send again"));
    form.append(field, choices);
    const element = this.#turns.at(-2);
    element.classList.add("editing");
    element.prepend(form);
    field.focus();
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!field.value.trim() && !this.conversation.messages.at(-2).files?.length) return;
      this.#closeEdit();
      this.#replace(field.value.trim());
      this.page.focus();
    });
    cancel.addEventListener("click", () => {
      this.#closeEdit();
      this.page.focus();
    });
    field.addEventListener("keydown", (event) => {
      if (isEnter(event)) form.requestSubmit();
      else if (event.key === "Escape") cancel.click();
      else return;
      event.preventDefault();
    });
  }

  // Its retry button goes with the form.
  #closeEdit() {
    this.element.querySelector(".failed")?.remove();
    for (const each of this.element.querySelectorAll(".edit-form")) {
      each.closest(".turn").classList.remove("editing");
      each.remove();
    }
  }

  // The message of a turn.
  messageOf(element) {
    return this.conversation.messages[this.#turns.indexOf(element)];
  }

  // Takes the last messages away. Returns them with their elements.
  #take(count) {
    const messages = this.conversation.messages.splice(-count);
    const turns = this.#turns.splice(-count);
    for (const each of turns) each.remove();
    return messages.map((message, place) => [message, turns[place]]);
  }

  #add(message) {
    let element;
    if (message.role === "user") {
      element = questionTurn(message);
    } else {
      const turn = new AnswerTurn();
      turn.show({ end: "stopped", ...message }, true); // the page was left before it ended
      element = turn.element;
    }
    this.#put(message, element);
  }

  #put(message, element) {
    if (!this.conversation.messages.includes(message)) this.conversation.messages.push(message);
    this.#turns.push(element);
    this.element.append(element);
  }

  async #run(questions, replaced, giveBack, retry) {
    this.element.querySelector(".failed")?.remove();
    for (const each of questions) this.#add(each);
    const answer = { role: "assistant", content: "", thought: "", calls: [], isJson: false, firstMs: null, lastMs: null, tokens: 0 };
    const turn = new AnswerTurn();
    turn.show(answer, false);
    this.element.append(turn.element);
    scrollDown();
    this.#stop = new AbortController();
    this.page.changed(this);
    let failure = null;
    let isBegun = false;
    const begun = performance.now();
    const begin = () => {
      isBegun = true;
      this.#put(answer, turn.element);
      this.page.changed(this);
    };
    try {
      const request = this.#request();
      answer.isJson = request.schema !== undefined;
      for await (const piece of answerTo(request, this.#stop.signal)) {
        if (!isBegun && (piece.text || piece.thought || piece.calls.length)) begin();
        this.#receive(answer, piece, performance.now() - begun);
        this.#drawSoon(turn, answer);
      }
      answer.end ??= "stop";
      if (!isBegun) begin();
    } catch (error) {
      failure = error;
      answer.end = error.name === "AbortError" ? "stopped" : "failed";
    }
    this.#stop = null;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const isAtEnd = atEnd();
    if (isBegun) turn.show(answer, true);
    else this.#undo(turn, questions, replaced, giveBack);
    if (answer.end === "failed") this.#showFailure(failure.message, "note wrong", isBegun ? () => this.regenerate() : retry);
    else if (!isBegun) this.#showFailure("Stopped before the first token.", "note", retry);
    if (isAtEnd) scrollDown();
    this.page.changed(this);
  }

  // The body of a request for the next answer. Throws an Error if a setting is wrong.
  #request() {
    const { system, ...fields } = this.page.settings();
    const messages = this.conversation.messages.map((each) => ({ role: each.role, content: contentOf(each) }));
    if (system) messages.unshift({ role: "system", content: system });
    return { messages, ...fields };
  }

  #receive(answer, { text, thought, calls, tokens, end }, nowMs) {
    if (text || thought || calls.length) {
      answer.firstMs ??= nowMs;
      answer.lastMs = nowMs;
    }
    answer.content += text ?? "";
    answer.thought += thought ?? "";
    for (const { function: called } of calls) {
      if (called.name) answer.calls.push(`${called.name} `);
      answer.calls[answer.calls.length - 1] += called.arguments ?? "";
    }
    answer.tokens = tokens ?? answer.tokens;
    answer.end = end ?? answer.end;
  }

  // Makes the conversation what it was before a question that got no answer.
  #undo(turn, questions, replaced, giveBack) {
    turn.element.remove();
    if (questions.length) this.#take(questions.length);
    for (const [message, element] of replaced) this.#put(message, element);
    giveBack();
  }

  #showFailure(text, css, retry) {
    const element = make("div", "failed");
    const button = make("button", "", "Retry");
    button.type = "button";
    button.addEventListener("click", retry);
    element.append(make("p", css, text), button);
    this.element.append(element);
  }

  #drawSoon(turn, answer) {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const isAtEnd = atEnd();
      turn.show(answer, false);
      if (isAtEnd) scrollDown();
    });
  }
}

// Whether a person reads the end of the page, and not something further up.
const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - END_PX;

const scrollDown = () => scrollTo(0, document.documentElement.scrollHeight);

// Whether a key sends what was typed: Enter does, but not while a word of an input method is chosen.
export const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
