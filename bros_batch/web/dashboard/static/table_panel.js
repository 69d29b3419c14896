// The table of a new job: chosen or dropped, sent to the server, and shown with its first rows.

import { cellTable, counted, number } from "./cells.js";
import { byId, make, setText } from "./dom.js";
import { droppedFiles } from "./dropped_files.js";
import { showProblem } from "./job_problems.js";
import { uploadTable } from "./table_upload.js";
import { zipOf } from "./zip_of_files.js";

let upload = null;
let sent = null; // the file that was sent last, for another sheet of it
let onTable = () => {};
let onChip = () => {};

// Calls `onTable` with what the server knows of a table that was read, and `onChip` with a column that is to be inserted.
export function watchTable(callbacks) {
  ({ onTable, onChip } = callbacks);
}

async function send(files, sheet = "") {
  upload?.abort();
  const controller = (upload = new AbortController());
  showProblem("file", "");
  byId("reading").hidden = false;
  byId("progress").value = 0;
  try {
    setText(byId("reading-note"), files.length > 1 ? `Packing ${counted(files.length, "file")} …` : "");
    const file = files.length > 1 ? await zipOf(files, controller.signal) : files[0].file;
    setText(byId("reading-note"), `Sending ${file.name} …`);
    const limit = Number(byId("drop").dataset.limitBytes);
    if (file.size > limit) throw new Error(`The file is larger than the limit of ${number(limit)} bytes.`);
    const found = await uploadTable(file, sheet, showProgress, controller.signal);
    if (controller.signal.aborted) return;
    sent = file;
    showTable(found);
    onTable(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    showProblem("file", error.message);
  } finally {
    if (upload === controller) {
      upload = null;
      byId("reading").hidden = true;
      byId("file").value = ""; // so that the same file can be chosen again
    }
  }
}

function showProgress({ sent, rows }) {
  if (rows !== undefined) setText(byId("reading-note"), `${counted(rows, "row")} read …`);
  else if (sent < 1) byId("progress").value = sent;
  else {
    byId("progress").removeAttribute("value");
    setText(byId("reading-note"), "Reading …");
  }
}

// Shows a table, as the server knows it.
export function showTable(found) {
  const isRequests = found.form === "batch";
  document.body.classList.toggle("requests", isRequests);
  byId("job").hidden = false;
  byId("table").hidden = false;
  byId("drop").classList.add("small");
  byId("file-label").textContent = "Choose another file";
  byId("table-name").textContent = found.source.name;
  const facts = [found.source.format, counted(found.rows, "row"), counted(found.num_columns, "column")];
  byId("table-facts").textContent = `· ${facts.join(" · ")}`;
  const notes = [...found.notes];
  if (isRequests) notes.push("Each line is a request of its own, in OpenAI's batch format. It runs as it is.");
  if (found.num_columns > found.columns.length) notes.push(`Only the first ${found.columns.length} columns are shown.`);
  if (found.bad_rows) {
    const what = `${counted(found.bad_rows, "row")} cannot be read and will count as failed.`;
    notes.push(`${what} The first: ${found.first_problem}`);
  }
  showSheets(found.sheets ?? []);
  byId("table-notes").replaceChildren(...notes.map((each) => make("li", "", each)));
  byId("table-notes").hidden = !notes.length;
  const rows = found.first.map(({ row, cells }) => [{ text: String(row), css: "count" }, ...cells]);
  byId("first-rows").replaceChildren(cellTable(["Row", ...found.columns], rows));
  byId("chips").replaceChildren(...found.chips.filter(Boolean).map(chip));
  const { id_field: ids, name } = byId("job").elements;
  const chosen = ids.value;
  ids.replaceChildren(ids.options[0], ...found.columns.map((column) => new Option(column, column)));
  ids.value = found.columns.includes(chosen) ? chosen : found.columns.includes(found.source.id_field) ? found.source.id_field : "";
  name.placeholder = found.source.name;
  byId("tried").hidden = true;
}

// A workbook that was read before the page was reloaded is no longer there to be read again.
function showSheets(sheets) {
  const [shown] = sheets;
  byId("sheets").hidden = sheets.length < 2;
  byId("sheet").replaceChildren(...sheets.toSorted().map((name) => new Option(name, name)));
  byId("sheet").value = shown ?? "";
  byId("sheet").disabled = sent === null;
  byId("sheet").title = sent === null ? "Choose the file again to read another sheet." : "";
}

function chip(name) {
  const button = make("button", "", name);
  button.type = "button";
  button.title = `Insert {${name}}`;
  button.addEventListener("click", () => onChip(name));
  return button;
}

const listed = (files) => [...files].map((file) => ({ path: file.name, file }));

byId("file").addEventListener("change", ({ target }) => target.files.length && send(listed(target.files)));
byId("sheet").addEventListener("change", ({ target }) => send([{ path: sent.name, file: sent }], target.value));
byId("stop-upload").addEventListener("click", () => upload?.abort());
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || byId("drop").classList.remove("over"));
document.addEventListener("drop", async (event) => {
  byId("drop").classList.remove("over");
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  const files = await droppedFiles(event.dataTransfer);
  if (files.length) send(files);
  else showProblem("file", "The folder has no files.");
});
