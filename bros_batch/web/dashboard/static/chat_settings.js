// The settings of a conversation: a form whose values are sent with each request.

import { byId } from "./dom.js";

const NAMES = ["system", "model", "temperature", "max_tokens", "schema"];

const form = byId("ask");
const { system, model, temperature, max_tokens: limit, schema } = form.elements;
let wantedModel = "";

// Shows the settings of a conversation.
export function showSettings(values) {
  for (const name of NAMES) form.elements[name].value = values[name] ?? "";
  wantedModel = values.model;
  chooseModel();
  summarize();
}

// The fields of a request that the person has set. Throws an Error if the schema is not JSON.
export function requestSettings() {
  const numberOf = (input) => (input.value ? input.valueAsNumber : undefined);
  return {
    system: system.value.trim(),
    schema: schema.value.trim() ? parsedSchema() : undefined,
    model: model.selectedIndex > 0 ? model.value : undefined, // the first one is the default
    temperature: numberOf(temperature),
    max_tokens: numberOf(limit),
  };
}

// Calls a function with the values whenever a person changes one.
export function listenToSettings(call) {
  form.querySelector(".settings").addEventListener("input", () => {
    wantedModel = model.value;
    summarize();
    call(Object.fromEntries(NAMES.map((name) => [name, form.elements[name].value])));
  });
  loadModels();
}

function parsedSchema() {
  try {
    return JSON.parse(schema.value);
  } catch (error) {
    form.querySelector("details").open = true;
    throw new Error(`The schema is not JSON: ${error.message}`);
  }
}

function summarize() {
  const set = [
    system.value.trim() && "system prompt",
    model.selectedIndex > 0 && model.value,
    temperature.value && `temperature ${temperature.value}`,
    limit.value && `at most ${limit.value} tokens`,
    schema.value.trim() && "JSON schema",
  ];
  byId("set").textContent = set.filter(Boolean).join(" · ");
}

// Chooses the model of the conversation, or the default if it is not served any more.
function chooseModel() {
  model.value = wantedModel ?? "";
  if (model.selectedIndex < 0) model.selectedIndex = 0;
}

async function loadModels() {
  const answer = await fetch("/v1/models").catch(() => null);
  if (!answer?.ok) return; // the server's defaults hold
  const { data } = await answer.json();
  model.replaceChildren(...data.map(({ id }) => new Option(id)));
  chooseModel();
  const defaults = data[0].sampling_defaults;
  temperature.placeholder = `${defaults.temperature} by default`;
  if (defaults.chat_tokens) limit.placeholder = `${defaults.chat_tokens} by default`;
  summarize();
}
