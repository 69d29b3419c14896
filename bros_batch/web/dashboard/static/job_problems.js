// What is wrong with a new job, next to the field that it is about.

import { byId, setText } from "./dom.js";

const PROBLEMS = [...document.querySelectorAll(".problem")].map((each) => each.id.slice("problem-".length));

const fieldOf = (name) => (name === "file" ? byId("file") : byId("job").elements[name]);

export function showProblem(name, message) {
  setText(byId(`problem-${name}`), message);
  const field = fieldOf(name);
  if (field instanceof Element) field.setAttribute("aria-invalid", String(Boolean(message)));
}

let isRefused = false; // a try or the start has said what is wrong, and nothing was changed since

// The job was changed, so that what a try or the start said of it may be wrong.
export function forgetRefusal() {
  isRefused = false;
}

export function clearProblems() {
  for (const name of PROBLEMS) if (name !== "file") showProblem(name, "");
}

// Shows an error of the server next to the field that it is about. Returns the element with the message.
function showError({ message, param }) {
  const known = { response_format: "schema", "source.id_field": "id_field", input_file_id: "file" };
  const field = (param ?? "").replace(/^(job|defaults)\./, "");
  const name = known[field] ?? known[param] ?? field;
  const place = PROBLEMS.includes(name) ? name : "job";
  showProblem(place, message.replaceAll("'defaults.", "'"));
  if (byId("options").contains(byId(`problem-${place}`))) byId("options").open = true;
  return byId(`problem-${place}`);
}

// Says why there is no try or no job. It stays until something is changed, although a preview may be under way.
export function refuse(error) {
  isRefused = true;
  showError(error).scrollIntoView({ block: "center" });
}

// Shows what a preview found, or that it found nothing.
export function showFound(problem) {
  if (isRefused) return;
  clearProblems();
  if (problem) showError(problem);
}
