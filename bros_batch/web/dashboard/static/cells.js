// Tables of texts.

import { make } from "./dom.js";

// A table with these heads. A row is a list of texts, or of {text, css}.
export function cellTable(heads, rows) {
  const table = make("table", "cells");
  const head = table.createTHead().insertRow();
  for (const text of heads) {
    const cell = make("th", "", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const value of row) {
      const { text, css = "", span = 1 } = typeof value === "string" ? { text: value } : value;
      const cell = line.insertCell();
      cell.className = css;
      cell.colSpan = span;
      cell.append(make("div", "", text));
    }
  }
  return table;
}

export const number = (count) => count.toLocaleString("en").replaceAll(",", "\u202f");
export const counted = (count, word) => `${number(count)} ${count === 1 ? word : `${word}s`}`;
