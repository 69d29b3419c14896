// The chat page: the list of conversations, the one that is shown, and the form for the next question.

import { toast } from "./actions.js";
import * as store from "./chat_store.js";
import { byId, make, setText } from "./dom.js";
import "./page.js";
import { Talk, isEnter } from "./talk.js";
import { label, readTextFile } from "./text_files.js";

const COPIED_MS = 1500;
const TITLE_CHARS = 60;
const SETTINGS = ["system", "model", "temperature", "max_tokens", "schema"];

const form = byId("ask");
const field = form.elements.question;
const talks = new Map(); // those that this page has shown, by id: their answers go on while others are shown
let shown = null; // the talk on the page
let files = []; // of the next question

const page = { settings, changed, focus: () => field.focus() };

// Conversations ------------------------------------------------------------------------------------------------------

const addressed = () => location.hash.slice(1);

function open(id) {
  const known = talks.get(id);
  const kept = known?.conversation ?? store.find(id);
  if (id && !kept) toast("This conversation is not in this browser any more.");
  const talk = known ?? new Talk(kept ?? store.newConversation(), page);
  talks.set(talk.conversation.id, talk);
  shown = talk;
  byId("talk").replaceChildren(talk.element);
  for (const name of SETTINGS) form.elements[name].value = talk.conversation.settings[name] ?? "";
  // A model that is not served any more is not chosen.
  if (form.elements.model.selectedIndex < 0) form.elements.model.selectedIndex = 0;
  showSettings();
  showState();
  showPast(false);
  scrollTo(0, document.documentElement.scrollHeight);
}

// Keeps a talk that has changed.
function changed(talk) {
  const { conversation } = talk;
  const { messages } = conversation;
  const isAnswered = messages.at(-1)?.role === "assistant";
  if (isAnswered) {
    const [first] = messages;
    conversation.title ||= (first.content || first.files[0].name).replace(/\s+/g, " ").slice(0, TITLE_CHARS);
    conversation.updated = Date.now();
    if (!store.save(conversation)) setText(byId("ask-note"), "This conversation is too long to be kept in this browser.");
    if (talk === shown && addressed() !== conversation.id) history.replaceState(null, "", `#${conversation.id}`);
    if (talk === shown && talk.isRunning) saveDraft(); // the question has its answer
  }
  showState();
  showList();
}

function showState() {
  byId("send").textContent = shown.isRunning ? "Stop" : "Send";
  byId("talk").setAttribute("aria-busy", shown.isRunning);
  document.body.classList.toggle("new-talk", !shown.element.childElementCount);
  document.title = `${shown.conversation.title || "Chat"} · bros-batch`;
}

function showList() {
  const all = store.conversations();
  byId("conversations").replaceChildren(...all.map(({ id, title }) => {
    const link = make("a", "", title);
    link.href = `#${id}`;
    if (id === shown.conversation.id) link.setAttribute("aria-current", "page");
    if (talks.get(id)?.isRunning) link.append(make("i", "running", " …"));
    const remove = make("button", "plain delete", "×");
    remove.type = "button";
    remove.dataset.id = id;
    remove.setAttribute("aria-label", `Delete “${title}”`);
    const row = make("li");
    row.append(link, remove);
    return row;
  }));
  byId("delete-all").hidden = all.length < 2;
}

function startNew() {
  if (location.hash) history.pushState(null, "", location.pathname);
  open("");
  showList();
  field.focus();
}

function showPast(isOpen) {
  byId("past").classList.toggle("open", isOpen);
  byId("past-switch").setAttribute("aria-expanded", isOpen);
}

let doomed = []; // the ids of conversations that will be deleted if the person says so

function askToDelete(ids, question) {
  doomed = ids;
  byId("delete-question").textContent = question;
  byId("delete-dialog").showModal();
}

byId("delete-yes").addEventListener("click", () => {
  byId("delete-dialog").close();
  for (const id of doomed) {
    talks.get(id)?.stop();
    talks.delete(id);
    store.forget(id);
  }
  if (doomed.includes(shown.conversation.id)) startNew();
  showList();
  field.focus();
});
byId("delete-no").addEventListener("click", () => byId("delete-dialog").close());
byId("delete-all").addEventListener("click", () => {
  const ids = store.conversations().map(({ id }) => id);
  askToDelete(ids, `Delete all ${ids.length} conversations?`);
});
byId("conversations").addEventListener("click", ({ target }) => {
  const id = target.dataset.id;
  if (id) askToDelete([id], `Delete “${store.find(id)?.title ?? "this conversation"}”?`);
});
byId("new-chat").addEventListener("click", startNew);
byId("past-switch").addEventListener("click", () => showPast(!byId("past").classList.contains("open")));
window.addEventListener("popstate", () => {
  open(addressed());
  showList();
});
window.addEventListener("pagehide", () => {
  for (const talk of talks.values()) if (talk.isRunning && talk.conversation.messages.at(-1).role === "assistant") store.save(talk.conversation);
});
store.onOtherTab((id) => {
  if (!talks.get(id)?.isRunning) talks.delete(id);
  if (id === shown.conversation.id && !shown.isRunning && store.find(id)) open(id);
  showList();
});

// Settings -----------------------------------------------------------------------------------------------------------

// The fields of a request that the person has set. Throws an Error if one of them makes no sense.
function settings() {
  const { system, model, temperature, max_tokens: most, schema } = form.elements;
  const numberOf = (input) => (input.value ? input.valueAsNumber : undefined);
  const isDefaultModel = model.selectedIndex <= 0;
  return {
    system: system.value.trim(),
    schema: schemaIn(schema),
    model: isDefaultModel ? undefined : model.value,
    temperature: numberOf(temperature),
    max_tokens: numberOf(most),
  };
}

function schemaIn({ value }) {
  if (!value.trim()) return undefined;
  try {
    return JSON.parse(value);
  } catch (error) {
    form.querySelector("details").open = true;
    throw new Error(`The schema is not JSON: ${error.message}`);
  }
}

function showSettings() {
  const { system, model, temperature, max_tokens: most, schema } = form.elements;
  const set = [
    system.value.trim() && "system prompt",
    model.selectedIndex > 0 && model.value,
    temperature.value && `temperature ${temperature.value}`,
    most.value && `at most ${most.value} tokens`,
    schema.value.trim() && "JSON schema",
  ];
  byId("set").textContent = set.filter(Boolean).join(" · ");
}

form.querySelector(".settings").addEventListener("input", () => {
  const values = Object.fromEntries(SETTINGS.map((name) => [name, form.elements[name].value]));
  shown.conversation.settings = values;
  store.saveSettings({ ...values, schema: "" }); // a schema belongs to its conversation
  if (shown.conversation.messages.length && !shown.isRunning) store.save(shown.conversation);
  showSettings();
});

async function loadModels() {
  const answer = await fetch("/v1/models").catch(() => null);
  if (!answer?.ok) return; // the server's own defaults hold
  const { data } = await answer.json();
  const { model, temperature, max_tokens: most } = form.elements;
  model.replaceChildren(...data.map(({ id }) => new Option(id)));
  model.value = shown.conversation.settings.model ?? "";
  if (model.selectedIndex < 0) model.selectedIndex = 0;
  const defaults = data[0].sampling_defaults;
  temperature.placeholder = `${defaults.temperature} by default`;
  if (defaults.chat_tokens) most.placeholder = `${defaults.chat_tokens} by default`;
  showSettings();
}

// The next question --------------------------------------------------------------------------------------------------

const saveDraft = () => store.saveDraft(field.value, files);

function showFiles() {
  byId("files").hidden = !files.length;
  byId("files").replaceChildren(...files.map((file, place) => {
    const row = make("li", "", label(file));
    const remove = make("button", "plain", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => {
      files.splice(place, 1);
      showFiles();
      saveDraft();
      field.focus();
    });
    row.append(remove);
    return row;
  }));
}

async function addFiles(added) {
  setText(byId("ask-note"), "");
  for (const file of added) {
    try {
      files.push(await readTextFile(file, files));
    } catch (error) {
      setText(byId("ask-note"), error.message);
      break;
    }
  }
  showFiles();
  saveDraft();
  field.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  field.focus();
  if (shown.isRunning) {
    shown.stop();
    return;
  }
  const question = { role: "user", content: field.value.trim(), files };
  if (!question.content && !files.length) return;
  setText(byId("ask-note"), "");
  field.value = "";
  files = [];
  showFiles();
  const giveBack = () => {
    // What was typed meanwhile comes after it.
    field.value = [question.content, field.value].filter(Boolean).join("\n\n");
    files = [...question.files, ...files];
    showFiles();
    saveDraft();
  };
  shown.ask(question, giveBack, () => form.requestSubmit());
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Escape") shown.stop();
  if (!isEnter(event)) return;
  event.preventDefault();
  if (!shown.isRunning) form.requestSubmit();
});
field.addEventListener("input", saveDraft);
byId("attach").addEventListener("click", () => byId("file-field").click());
byId("file-field").addEventListener("change", async ({ target }) => {
  await addFiles([...target.files]);
  target.value = "";
});
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
    if (type === "drop") addFiles([...event.dataTransfer.files]);
  });
}

// Buttons of turns ---------------------------------------------------------------------------------------------------

byId("talk").addEventListener("click", ({ target }) => {
  const turn = target.closest(".turn");
  if (target.matches(".copy")) {
    const { content, calls = [] } = shown.messageOf(turn);
    copy(content || calls.join("\n"), target);
  } else if (target.matches(".copy-code")) {
    copy(target.parentElement.querySelector("pre").textContent, target);
  } else if (target.matches(".again")) {
    shown.regenerate();
    field.focus();
  } else if (target.matches(".edit")) {
    shown.edit();
  }
});

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copySelected(text); // a page without HTTPS has no clipboard
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  button.focus();
}

function copySelected(text) {
  const carrier = make("textarea", "carrier");
  carrier.value = text;
  document.body.append(carrier);
  carrier.select();
  document.execCommand("copy");
  carrier.remove();
}

open(addressed());
({ text: field.value, files } = store.draft());
showFiles();
showList();
loadModels();
