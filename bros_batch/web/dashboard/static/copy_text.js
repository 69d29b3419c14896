// Copying to the clipboard.

import { make } from "./dom.js";

const COPIED_MS = 1500;

// Copies a text, and says so on the button that was pressed.
export async function copyText(text, button) {
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
