// The page for a new job: a table, a prompt with a preview, the columns that are wanted, a try, and the start.

import { post } from "./actions.js";
import { byId } from "./dom.js";
import { previewSoon, stopPreview } from "./job_preview.js";
import { clearProblems, forgetRefusal, refuse } from "./job_problems.js";
import { connect } from "./live.js";
import { showTable, watchTable } from "./table_panel.js";
import { tryRows } from "./tried_rows.js";
import { addColumn, clearColumns, wantedColumns } from "./wanted_columns.js";

const SAVED = "new-job"; // what was typed, while this tab is open

const form = byId("job");
const prompt = byId("prompt");
let table = null; // what the server knows of the file

// What the server gets, as JobDraft has it.
function draft() {
  const { elements } = form;
  const numeric = ({ value }) => (value.trim() === "" ? null : Number(value));
  return {
    file: table.file,
    source: table.source,
    endpoint: table.endpoint,
    prompt: prompt.value,
    shape: elements.shape.value,
    columns: wantedColumns(),
    schema: elements.schema.value,
    system: elements.system.value,
    id_field: elements.id_field.value,
    name: elements.name.value,
    max_tokens: numeric(elements.max_tokens),
    temperature: numeric(elements.temperature),
    priority: numeric(elements.priority) ?? 0,
    notify: elements.notify.value,
  };
}

function changed() {
  forgetRefusal();
  showShape();
  stopPreview();
  if (!table) return;
  const job = draft();
  try {
    sessionStorage.setItem(SAVED, JSON.stringify({ table, job }));
  } catch {
    // without storage, a reload loses what was typed
  }
  if (table.form !== "batch") previewSoon(job, table.rows);
}

function showShape() {
  for (const part of document.querySelectorAll("[data-shape]")) {
    part.hidden = part.dataset.shape !== form.elements.shape.value;
  }
}

watchTable({
  onTable(found) {
    table = found;
    changed();
  },
  onChip(name) {
    prompt.focus();
    prompt.setRangeText(`{${name}}`, prompt.selectionStart, prompt.selectionEnd, "end");
    changed();
  },
});
form.addEventListener("input", changed);
form.addEventListener("change", changed);
byId("add-column").addEventListener("click", () => {
  addColumn().querySelector(".name").focus();
  changed();
});

byId("try").addEventListener("click", () => tryRows(draft(), table.first.map(({ row }) => row)));

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (byId("start").disabled) return;
  clearProblems();
  byId("start").disabled = true;
  try {
    const { id } = await (await post("/new/start", JSON.stringify(draft()))).json();
    sessionStorage.removeItem(SAVED);
    location.assign(`/jobs/${encodeURIComponent(id)}`);
  } catch (error) {
    refuse(error);
    byId("start").disabled = false;
  }
});
window.addEventListener("pageshow", () => (byId("start").disabled = false));

// Puts back what was typed before the page was reloaded. Returns whether there was anything.
function restore() {
  const { table: found, job } = JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");
  if (!found) return false;
  table = found;
  showTable(found);
  for (const [name, value] of Object.entries(job)) {
    const field = form.elements[name];
    if (field && name !== "columns") field.value = value ?? "";
  }
  clearColumns();
  job.columns.forEach(addColumn);
  changed();
  return true;
}

connect();
try {
  if (!restore()) addColumn();
} catch {
  addColumn(); // there is no storage, or it holds what another version has saved
}
