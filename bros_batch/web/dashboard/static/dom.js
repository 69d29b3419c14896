// The few functions about elements that every script needs.

export const byId = (id) => document.getElementById(id);

// Shows a text in an element, or hides the element if there is none. The same text again is not announced twice.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

// A new element with a class and a text. A text is never markup.
export function make(tag, css = "", text = "") {
  const element = document.createElement(tag);
  if (css) element.className = css;
  if (text) element.textContent = text;
  return element;
}
