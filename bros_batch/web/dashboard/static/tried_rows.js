// A try of a new job: its first rows are computed at once, and their answers shown as they come.

import { post } from "./actions.js";
import { cellTable, number } from "./cells.js";
import { byId } from "./dom.js";
import { clearProblems, refuse } from "./job_problems.js";

const TRIED_ROWS = 3;

let trying = null;

// Tries the first of these rows, or stops a try that is under way.
export async function tryRows(job, firstRows) {
  if (trying) {
    trying.abort();
    return;
  }
  clearProblems();
  const controller = (trying = new AbortController());
  byId("try").textContent = "Stop";
  const rows = firstRows.slice(0, TRIED_ROWS);
  const found = new Map();
  try {
    await Promise.all(
      rows.map(async (row) => {
        const answer = await post("/new/try", JSON.stringify({ job, row }), controller.signal);
        found.set(row, await answer.json());
        showTried(rows, found);
      }),
    );
  } catch (error) {
    controller.abort();
    if (error.name !== "AbortError") refuse(error);
  } finally {
    trying = null;
    byId("try").textContent = `Try ${TRIED_ROWS} rows`;
  }
}

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
