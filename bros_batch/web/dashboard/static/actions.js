// Buttons that change something on the server, and the message when that fails.

import { byId, setText } from "./dom.js";
import { connect } from "./live.js";

const TOAST_MS = 6000;

let toastTimer = 0;

// Shows a message for a while. `isGood` is for news that are no errors.
export function toast(message, isGood = false) {
  byId("toast").classList.toggle("good", isGood);
  setText(byId("toast"), message);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => setText(byId("toast"), ""), TOAST_MS);
}

// Sends JSON. Throws an Error with a message for people unless the server accepts it. The error has the server's code, and
// names the field at fault (`param`), if there is one.
export async function post(url, body, signal) {
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(url, { method: "POST", headers, body, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server is not reachable.");
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({}));
    const message = error?.message ?? `The server answered ${answer.status}.`;
    throw Object.assign(new Error(message), { code: error?.code, param: error?.param });
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
});
