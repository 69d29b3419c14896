// Answers of the model, as they arrive.

import { post } from "./actions.js";

const BUSY = "The server is too busy to answer in time, so it did not take this message. Try again in a few seconds.";

// The pieces of the next answer of a conversation. Throws an Error whose message is for people.
export async function* answerTo(request, signal) {
  try {
    const answer = await post("/chat", JSON.stringify(request), signal);
    for await (const { choices, usage } of eventsOf(answer)) {
      const { delta = {}, finish_reason: end } = choices[0] ?? {};
      yield { text: delta.content, thought: delta.reasoning_content, calls: delta.tool_calls ?? [], tokens: usage?.completion_tokens, end };
    }
  } catch (error) {
    throw error.code === "overloaded" ? new Error(BUSY) : error;
  }
}

// The objects of an event stream, until its [DONE].
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : lost();
    });
    if (done) throw lost();
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const each of events) {
      if (each.startsWith(":")) continue; // a comment of a stream that waits
      const data = each.slice("data: ".length);
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw Object.assign(new Error(object.error.message), { code: object.error.code });
      yield object;
    }
  }
}

const lost = () => new Error("The connection to the server was lost.");
