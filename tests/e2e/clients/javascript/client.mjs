// OpenAI's JavaScript client against the server of the tests; the first mistake ends it.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello!" }];
const asked = { model, messages, max_tokens: 8, temperature: 0 };

const whole = await client.chat.completions.create(asked);
assert.equal(whole.object, "chat.completion");
assert.equal(whole.usage.completion_tokens, 8);

let text = "";
let usage;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, 8);

const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] } },
  required: ["city"],
};
const tools = [{ type: "function", function: { name: "travel", parameters } }];
const tool_choice = { type: "function", function: { name: "travel" } };
const called = await client.chat.completions.create({ ...asked, tools, tool_choice, max_tokens: 40 });
const [call] = called.choices[0].message.tool_calls;
assert.equal(call.type, "function");
assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));

const response = await client.responses.create({ model, input: "Hello!", max_output_tokens: 8 });
assert.equal(response.usage.output_tokens, 8);

const names = [];
for await (const card of client.models.list()) names.push(card.id);
assert.equal(names[0], model);
assert.equal((await client.models.retrieve(model)).id, model);

const wrong = { ...asked, model: "nobody" };
await assert.rejects(client.chat.completions.create(wrong), OpenAI.NotFoundError);
const bad = { ...asked, temperature: -1 };
await assert.rejects(client.chat.completions.create(bad), (error) => {
  return error instanceof OpenAI.BadRequestError && error.type === "BadRequestError";
});
const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(stranger.chat.completions.create(asked), OpenAI.AuthenticationError);

const stop = new AbortController();
const long = { ...asked, max_tokens: 900, stream: true, ignore_eos: true };
const stream = await client.chat.completions.create(long, { signal: stop.signal });
for await (const chunk of stream) {
  if (chunk.choices[0]?.delta?.content) stop.abort();
}
console.log("good");
