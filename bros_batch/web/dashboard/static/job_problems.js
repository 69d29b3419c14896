// What is wrong with a new job, next to the field that it is about.

import { byId, setText } from "./dom.js";

const PROBLEMS = [...document.querySelectorAll(".problem")].map((each) => each.id.slice("problem-".length));

const fieldOf = (name) => (name === "file" ? byId("file") : byId("job").elements[name]);

export function showProblem(name, message) {
  setText(byId(`problem-${name}`), message);
  const field = fieldOf(name);
  if (field instanceof Element) field.setAttribute("aria-invalid", String(Boolean(message)));
}

export function clearProblems() {
  for (const name of PROBLEMS) if (name !== "file") showProblem(name, "");
}

// Shows an error of the server next to the field that it is about. Returns the element with the message.
export function showError({ message, param }) {
  const known = { response_format: "schema", "source.id_field": "id_field", input_file_id: "file" };
  const field = (param ?? "").replace(/^(job|defaults)\./, "");
  const name = known[field] ?? known[param] ?? field;
  const place = PROBLEMS.includes(name) ? name : "job";
  showProblem(place, message.replaceAll("'defaults.", "'"));
  if (byId("options").contains(byId(`problem-${place}`))) byId("options").open = true;
  return byId(`problem-${place}`);
}
