// The chat page: the list of conversations, the one that is shown, and the form for the next question.

import { toast } from "./actions.js";
import { listenToSettings, requestSettings, showSettings } from "./chat_settings.js";
import * as store from "./chat_store.js";
import { copyText } from "./copy_text.js";
import { byId, make, setText } from "./dom.js";
import "./page.js";
import { Talk, isEnter } from "./talk.js";
import { label, readTextFile } from "./text_files.js";

const TITLE_CHARS = 60;

const form = byId("ask");
const field = form.elements.question;
const talks = new Map(); // those that this page has shown, by id: their answers go on while others are shown
let shown = null; // the talk on the page
let files = []; // of the next question

const page = { settings: requestSettings, changed, focus: () => field.focus() };

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
  showSettings(talk.conversation.settings);
  showState();
  showPast(false);
  scrollTo(0, document.documentElement.scrollHeight);
}

// Keeps a talk that has changed.
function changed(talk) {
  const { conversation } = talk;
  const { messages } = conversation;
  if (talks.get(conversation.id) !== talk) return; // it was deleted meanwhile
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
// Escape stops an answer wherever the focus is, unless it closes a dialog or the form of a changed question.
document.addEventListener("keydown", (event) => {
  const isMeant = event.key === "Escape" && !event.isComposing && !event.defaultPrevented && !byId("delete-dialog").open;
  if (!isMeant || !shown.isRunning) return;
  shown.stop();
  field.focus();
});
field.addEventListener("keydown", (event) => {
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

byId("talk").addEventListener("click", ({ target }) => {
  const turn = target.closest(".turn");
  if (target.matches(".copy")) {
    const { content, calls = [] } = shown.messageOf(turn);
    copyText(content || calls.join("\n"), target);
  } else if (target.matches(".copy-code")) {
    copyText(target.parentElement.querySelector("pre").textContent, target);
  } else if (target.matches(".again")) {
    shown.regenerate();
    field.focus();
  } else if (target.matches(".edit")) {
    shown.edit();
  }
});

open(addressed());
({ text: field.value, files } = store.draft());
showFiles();
showList();
listenToSettings((values) => {
  const { conversation } = shown;
  conversation.settings = values;
  store.saveSettings({ ...values, schema: "" }); // a schema belongs to its conversation
  if (conversation.messages.length && !shown.isRunning) store.save(conversation);
});
