// What the model reads for the first rows of a new job, and the forecast for all of them.

import { post } from "./actions.js";
import { counted, number } from "./cells.js";
import { byId, make, setText } from "./dom.js";
import { showFound } from "./job_problems.js";

const PREVIEW_AFTER_MS = 250;
const FORECAST_AFTER_MS = 750; // after the preview: it costs the server more

const noPreview = byId("preview").firstElementChild;
let previewing = null;
let timer = 0;

// Shows the preview of a job soon, instead of the one before. `rows` is the number of rows of its table.
export function previewSoon(job, rows) {
  stopPreview();
  timer = setTimeout(preview, PREVIEW_AFTER_MS, job, rows);
}

export function stopPreview() {
  clearTimeout(timer);
  previewing?.abort();
}

async function preview(job, total) {
  const controller = (previewing = new AbortController());
  try {
    const answer = await post("/new/preview", JSON.stringify(job), controller.signal);
    const { rows, problem } = await answer.json();
    // Somebody who has not begun to write needs no reproach.
    const isBlank = !job.prompt.trim() || (problem?.param === "columns" && job.columns.every(({ name }) => !name));
    showFound(isBlank ? null : problem);
    // A problem of all rows is said once, next to the prompt.
    const shown = job.prompt.trim() ? rows.filter((row) => !problem || !row.problem) : [];
    byId("preview").replaceChildren(...(shown.length ? shown.map(previewOf) : [noPreview]));
    if (problem) setText(byId("forecast"), "");
    else timer = setTimeout(forecast, FORECAST_AFTER_MS, job, total, controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") showFound(error);
  }
}

async function forecast(job, rows, signal) {
  const body = JSON.stringify({ job, rows });
  const answer = await post("/new/forecast", body, signal).catch(() => null); // a problem is said elsewhere
  if (signal.aborted) return;
  const { forecast: seconds, input_tokens: read, output_tokens: written, reused, chats } = (await answer?.json()) ?? {};
  if (!read) {
    setText(byId("forecast"), "");
    return;
  }
  const tokens = `${counted(read, "token")} in, about ${number(written)} out`;
  const time = seconds ? `about ${span(seconds.p50)} (${span(seconds.p10)} to ${span(seconds.p90)}), ` : "";
  const lines = [`${counted(rows, "row")}: ${time}${tokens}`];
  if (reused) lines.push(`Reused: ${reused}`);
  if (chats) lines.push(`Chats: ${chats}`);
  setText(byId("forecast"), lines.join("\n"));
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
