// The page for a new job: a table, a prompt with a preview, the columns that are wanted, a try, and the start.

import { post } from "./actions.js";
import { cellTable, counted, number } from "./cells.js";
import { byId, make, setText } from "./dom.js";
import { connect } from "./live.js";
import { uploadTable } from "./table_upload.js";
import { addColumn, clearColumns, wantedColumns } from "./wanted_columns.js";

const PREVIEW_AFTER_MS = 250;
const FORECAST_AFTER_MS = 750; // after the preview: it costs the server more
const SAVED = "new-job"; // what was typed, while this tab is open
const TRIED_ROWS = 3;
const PROBLEMS = [...document.querySelectorAll(".problem")].map((each) => each.id.slice("problem-".length));

const form = byId("job");
const prompt = byId("prompt");
let table = null; // what the server knows of the file
let upload = null;
let previewing = null;
let trying = null;
let timer = 0;
const noPreview = byId("preview").firstElementChild;

// Problems, next to their fields ------------------------------------------------------------------------------------

const fieldOf = (name) => (name === "file" ? byId("file") : form.elements[name]);

function showProblem(name, message) {
  setText(byId(`problem-${name}`), message);
  const field = fieldOf(name);
  if (field instanceof Element) field.setAttribute("aria-invalid", String(Boolean(message)));
}

function clearProblems() {
  for (const name of PROBLEMS) if (name !== "file") showProblem(name, "");
}

// Shows an error of the server next to the field that it is about.
function showError({ message, param }) {
  const known = { response_format: "schema", "source.id_field": "id_field", input_file_id: "file" };
  const field = (param ?? "").replace(/^(job|defaults)\./, "");
  const name = known[field] ?? known[param] ?? field;
  const place = PROBLEMS.includes(name) ? name : "job";
  showProblem(place, message.replaceAll("'defaults.", "'"));
  if (byId("options").contains(byId(`problem-${place}`))) byId("options").open = true;
  return place;
}

// The table ----------------------------------------------------------------------------------------------------------

async function send(file) {
  upload?.abort();
  const controller = (upload = new AbortController());
  showProblem("file", "");
  byId("reading").hidden = false;
  byId("progress").value = 0;
  setText(byId("reading-note"), `Sending ${file.name} …`);
  try {
    const limit = Number(byId("drop").dataset.limitBytes);
    if (file.size > limit) throw new Error(`The file is larger than the limit of ${number(limit)} bytes.`);
    const found = await uploadTable(file, showProgress, controller.signal);
    if (controller.signal.aborted) return;
    showTable(found);
    changed();
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

function showTable(found) {
  table = found;
  const isRequests = found.form === "batch";
  document.body.classList.toggle("requests", isRequests);
  form.hidden = false;
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
  byId("table-notes").replaceChildren(...notes.map((each) => make("li", "", each)));
  byId("table-notes").hidden = !notes.length;
  const rows = found.first.map(({ row, cells }) => [{ text: String(row), css: "count" }, ...cells]);
  byId("first-rows").replaceChildren(cellTable(["Row", ...found.columns], rows));
  byId("chips").replaceChildren(...found.chips.filter(Boolean).map(chip));
  const ids = form.elements.id_field;
  const chosen = ids.value;
  ids.replaceChildren(ids.options[0], ...found.columns.map((name) => new Option(name, name)));
  ids.value = found.columns.includes(chosen) ? chosen : found.columns.includes(found.source.id_field) ? found.source.id_field : "";
  form.elements.name.placeholder = found.source.name;
  byId("tried").hidden = true;
}

function chip(name) {
  const button = make("button", "", name);
  button.type = "button";
  button.title = `Insert {${name}}`;
  button.addEventListener("click", () => {
    prompt.focus();
    prompt.setRangeText(`{${name}}`, prompt.selectionStart, prompt.selectionEnd, "end");
    changed();
  });
  return button;
}

byId("file").addEventListener("change", ({ target }) => target.files[0] && send(target.files[0]));
byId("stop-upload").addEventListener("click", () => upload?.abort());
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  byId("drop").classList.remove("over");
  const files = event.dataTransfer?.files;
  if (!files?.length) return;
  event.preventDefault();
  if (files.length === 1) send(files[0]);
  else showProblem("file", `A job has one file, and these are ${files.length}. Put documents into a zip file first.`);
});

// The job --------------------------------------------------------------------------------------------------------------

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
  };
}

function changed() {
  showShape();
  clearTimeout(timer);
  if (!table) return;
  try {
    sessionStorage.setItem(SAVED, JSON.stringify({ table, job: draft() }));
  } catch {
    // without storage, a reload loses what was typed
  }
  if (table.form !== "batch") timer = setTimeout(preview, PREVIEW_AFTER_MS);
}

function showShape() {
  for (const part of document.querySelectorAll("[data-shape]")) {
    part.hidden = part.dataset.shape !== form.elements.shape.value;
  }
}

async function preview() {
  previewing?.abort();
  const controller = (previewing = new AbortController());
  clearTimeout(timer);
  try {
    const answer = await post("/new/preview", JSON.stringify(draft()), controller.signal);
    const { rows, problem } = await answer.json();
    clearProblems();
    // Somebody who has not begun to write needs no reproach.
    const isBlank = !prompt.value.trim() || (problem?.param === "columns" && wantedColumns().every(({ name }) => !name));
    if (problem && !isBlank) showError(problem);
    // A problem of all rows is said once, next to the prompt.
    const shown = prompt.value.trim() ? rows.filter((row) => !problem || !row.problem) : [];
    byId("preview").replaceChildren(...(shown.length ? shown.map(previewOf) : [noPreview]));
    if (problem) setText(byId("forecast"), "");
    else timer = setTimeout(forecast, FORECAST_AFTER_MS);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

async function forecast() {
  const body = JSON.stringify({ job: draft(), rows: table.rows });
  const answer = await post("/new/forecast", body, previewing.signal).catch(() => null); // a problem is said elsewhere
  const { forecast: seconds, input_tokens: read, output_tokens: written } = (await answer?.json()) ?? {};
  if (!read) {
    setText(byId("forecast"), "");
    return;
  }
  const tokens = `${counted(read, "token")} in, about ${number(written)} out`;
  const time = seconds ? `about ${span(seconds.p50)} (${span(seconds.p10)} to ${span(seconds.p90)}), ` : "";
  setText(byId("forecast"), `${counted(table.rows, "row")}: ${time}${tokens}`);
}

// A time in words, as precise as a forecast is.
function span(seconds) {
  const units = [["h", 3600], ["min", 60], ["s", 1]];
  const [word, size] = units.find(([, each]) => seconds >= 2 * each) ?? units[2];
  return `${number(Math.max(1, Math.round(seconds / size)))} ${word}`;
}

function previewOf({ row, prompt: text, chars, problem }) {
  const part = make("article");
  const length = problem ? "" : ` · ${counted(chars, "character")}`;
  part.append(make("b", "", `Row ${row}${length}`), make("p", problem ? "failed" : "", problem ?? text));
  return part;
}

form.addEventListener("input", changed);
form.addEventListener("change", changed);
byId("add-column").addEventListener("click", () => {
  addColumn().querySelector(".name").focus();
  changed();
});

// A try ----------------------------------------------------------------------------------------------------------------

byId("try").addEventListener("click", async () => {
  if (trying) {
    trying.abort();
    return;
  }
  clearProblems();
  const controller = (trying = new AbortController());
  byId("try").textContent = "Stop";
  const job = draft();
  const rows = table.first.slice(0, TRIED_ROWS).map(({ row }) => row);
  const found = new Map();
  const show = () => showTried(rows, found);
  try {
    await Promise.all(
      rows.map(async (row) => {
        const answer = await post("/new/try", JSON.stringify({ job, row }), controller.signal);
        found.set(row, await answer.json());
        show();
      }),
    );
  } catch (error) {
    controller.abort();
    if (error.name !== "AbortError") byId(`problem-${showError(error)}`).scrollIntoView({ block: "center" });
  } finally {
    trying = null;
    byId("try").textContent = `Try ${TRIED_ROWS} rows`;
  }
});

function showTried(rows, found) {
  const answers = [...found.values()].map(({ answer }) => answer);
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const names = [...new Set(answers.filter(isObject).flatMap(Object.keys))];
  const heads = names.length ? names : ["answer"];
  const lines = rows.map((row) => {
    const number_ = { text: String(row), css: "count" };
    if (!found.has(row)) return [number_, { text: "…", span: heads.length + 2 }];
    const { answer, is_cut: isCut, prompt_tokens: read, output_tokens: written, seconds } = found.get(row);
    let cells = isObject(answer) ? heads.map((name) => asText(answer[name])) : [{ text: asText(answer), span: heads.length }];
    if (isCut) {
      const note = `Cut off at the token limit: ${asText(answer)}`;
      cells = [{ text: note, css: "failed", span: heads.length }];
    }
    const counts = { text: `${number(read)} in, ${number(written)} out`, css: "count" };
    return [number_, ...cells, counts, { text: seconds.toFixed(2), css: "count" }];
  });
  byId("tried-rows").replaceChildren(cellTable(["Row", ...heads, "Tokens", "Seconds"], lines));
  byId("tried").hidden = false;
}

function asText(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value);
}

// The start ------------------------------------------------------------------------------------------------------------

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (byId("start").disabled) return;
  clearTimeout(timer);
  clearProblems();
  byId("start").disabled = true;
  try {
    const { id } = await (await post("/new/start", JSON.stringify(draft()))).json();
    sessionStorage.removeItem(SAVED);
    location.assign(`/jobs/${encodeURIComponent(id)}`);
  } catch (error) {
    byId(`problem-${showError(error)}`).scrollIntoView({ block: "center" });
    byId("start").disabled = false;
  }
});
window.addEventListener("pageshow", () => (byId("start").disabled = false));

function restore() {
  const { table: found, job } = JSON.parse(sessionStorage.getItem(SAVED) ?? "{}");
  if (!found) return false;
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
