// The conversations of the chat page. They are kept in this browser only, the newest ones as far as there is room.

const PREFIX = "bros-chat:";
const SETTINGS = "bros-chat-settings";
const DRAFT = "bros-chat-draft";
const MAX_CONVERSATIONS = 100;
const MAX_CHARS = 2_000_000; // of one conversation; browsers keep about five million in all

// A conversation: `messages` are questions and answers in turn, `settings` what the person set for it.
export function newConversation() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, title: "", updated: 0, settings: { ...read(localStorage, SETTINGS) }, messages: [] };
}

// All conversations, the newest first.
export function conversations() {
  const found = keys().map((key) => read(localStorage, key)).filter((each) => Array.isArray(each?.messages));
  return found.sort((a, b) => b.updated - a.updated);
}

export function find(id) {
  const found = id && read(localStorage, PREFIX + id);
  return Array.isArray(found?.messages) ? found : null;
}

// Keeps a conversation, and forgets the oldest others if there is no room. Returns whether it is kept.
export function save(conversation) {
  const text = JSON.stringify(conversation);
  if (text.length > MAX_CHARS) return false;
  const others = conversations().filter(({ id }) => id !== conversation.id);
  while (others.length >= MAX_CONVERSATIONS) forget(others.pop().id);
  while (!write(localStorage, PREFIX + conversation.id, text)) {
    if (!others.length) return false;
    forget(others.pop().id);
  }
  return true;
}

export function forget(id) {
  localStorage.removeItem(PREFIX + id);
}

// Calls a function with the id of each conversation that another tab changes.
export function onOtherTab(call) {
  window.addEventListener("storage", ({ key }) => key?.startsWith(PREFIX) && call(key.slice(PREFIX.length)));
}

// The settings with which the next conversation begins.
export function saveSettings(settings) {
  write(localStorage, SETTINGS, JSON.stringify(settings));
}

// What was typed but not sent: it belongs to this tab.
export const draft = () => read(sessionStorage, DRAFT) ?? { text: "", files: [] };

export function saveDraft(text, files) {
  if (!write(sessionStorage, DRAFT, JSON.stringify({ text, files }))) write(sessionStorage, DRAFT, JSON.stringify({ text, files: [] }));
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return []; // this browser keeps nothing
  }
}

function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null;
  }
}

function write(storage, key, text) {
  try {
    storage.setItem(key, text);
    return true;
  } catch {
    return false; // there is no room
  }
}
