// The columns that the answers should have: a list of fields that a person fills in.

import { byId } from "./dom.js";

const list = byId("wanted");

// Adds a row of fields, filled with a column as `wantedColumns` returns it.
export function addColumn({ name = "", kind = "text", about = "", options = "", optional = false } = {}) {
  const row = byId("wanted-row").content.firstElementChild.cloneNode(true);
  for (const [css, value] of Object.entries({ name, kind, about, options })) row.querySelector(`.${css}`).value = value;
  row.querySelector(".optional input").checked = optional;
  row.querySelector(".kind").addEventListener("change", () => showOptions(row));
  row.querySelector(".remove").addEventListener("click", () => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (next?.querySelector(".name") ?? byId("add-column")).focus();
    list.dispatchEvent(new Event("input", { bubbles: true }));
  });
  showOptions(row);
  list.append(row);
  return row;
}

export function wantedColumns() {
  return [...list.children].map((row) => {
    const field = (css) => row.querySelector(`.${css}`).value;
    const optional = row.querySelector(".optional input").checked;
    return { name: field("name"), kind: field("kind"), about: field("about"), options: field("options"), optional };
  });
}

export function clearColumns() {
  list.replaceChildren();
}

function showOptions(row) {
  row.querySelector(".options").hidden = row.querySelector(".kind").value !== "one of";
}
