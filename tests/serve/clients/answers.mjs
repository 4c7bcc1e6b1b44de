// Answers in every form that the official client for node asks for: `node answers.mjs MODEL`, the address and key from
// the environment as always. Prints what it has seen as JSON.
import assert from "node:assert/strict";
import OpenAI from "openai";

const QUESTION = "Anna has 3 apples and gets 4 more. How many?";
const ASKED = [{ role: "user", content: QUESTION }];
const SCHEMA = {
  type: "object",
  properties: { on: { type: "boolean" }, side: { type: "boolean" } },
  required: ["on", "side"],
  additionalProperties: false,
};
const FUNCTION = { name: "move", description: "Move.", parameters: SCHEMA, strict: true };
const FORMAT = { name: "Point", schema: SCHEMA, strict: true };
const openai = new OpenAI({ maxRetries: 0 });

function isPoint(text) {
  const found = JSON.parse(text);
  assert.deepEqual(Object.keys(found).sort(), ["on", "side"]);
  assert.equal(typeof found.on, "boolean");
}

async function chat(model) {
  const asked = { model, messages: ASKED, seed: 3, max_tokens: 200 };
  const tools = [{ type: "function", function: FUNCTION }];
  const one = { tools, parallel_tool_calls: false };
  const called = await openai.chat.completions.create({ ...asked, ...one, tool_choice: "required" });
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  const { message } = called.choices[0];
  message.tool_calls.forEach((call) => isPoint(call.function.arguments));
  const stream = await openai.chat.completions.create({
    ...asked, ...one, tool_choice: { type: "function", function: { name: "move" } }, stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const parts = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
  assert.ok(parts.length && parts.every((part) => part.function.name === "move"));
  assert.ok(chunks.at(-1).usage.total_tokens > 0);
  const results = message.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "7" }));
  await openai.chat.completions.create({ ...asked, messages: [...ASKED, message, ...results], ...one, max_tokens: 9 });
  const form = { type: "json_schema", json_schema: FORMAT };
  const two = await openai.chat.completions.create({ ...asked, n: 2, response_format: form });
  two.choices.forEach((choice) => isPoint(choice.message.content));
  const helpers = openai.chat.completions.stream ? openai.chat.completions : openai.beta.chat.completions;
  const followed = helpers.stream({ ...asked, response_format: form, logprobs: true });
  const final = (await followed.finalChatCompletion()).choices[0];
  isPoint(final.message.content);
  assert.equal(final.logprobs.content.map((one) => one.token).join(""), final.message.content);
  const likely = await openai.chat.completions.create({
    ...asked, temperature: 0, logprobs: true, top_logprobs: 2, stop: ["\n", "!"], logit_bias: { 5: -100 }, presence_penalty: 0.5,
    frequency_penalty: 0.5,
  });
  const told = likely.choices[0].logprobs.content;
  const said = Buffer.from(told.flatMap((one) => one.bytes)).toString();
  assert.ok(said.startsWith(likely.choices[0].message.content));
  assert.ok(told.every((one) => one.top_logprobs.length === 2));
}

async function responses(model) {
  const asked = { model, input: QUESTION, temperature: 0, max_output_tokens: 200 };
  const whole = await openai.responses.create({ ...asked, instructions: "Be brief." });
  const events = [];
  for await (const event of await openai.responses.create({ ...asked, instructions: "Be brief.", stream: true })) {
    assert.equal(event.sequence_number, events.length);
    events.push(event);
  }
  const deltas = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(deltas.join(""), whole.output_text);
  const text = { format: { type: "json_schema", ...FORMAT } };
  const final = await openai.responses.stream({ ...asked, text }).finalResponse();
  isPoint(final.output[0].content[0].text);
  const parsed = await openai.responses.parse({ ...asked, text: { format: { ...text.format } } });
  isPoint(parsed.output_text);
  const tools = [{ type: "function", ...FUNCTION }];
  const one = { tools, parallel_tool_calls: false, tool_choice: "required" };
  const called = await openai.responses.create({ ...asked, ...one });
  const calls = called.output.filter((item) => item.type === "function_call");
  isPoint(calls[0].arguments);
  const kinds = [];
  const stream = openai.responses.stream({ ...asked, ...one });
  for await (const event of stream) kinds.push(event.type);
  assert.equal((await stream.finalResponse()).output.at(-1).arguments, calls.at(-1).arguments);
  const outputs = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "7" }));
  const input = [{ role: "user", content: QUESTION }, ...called.output, ...outputs];
  const answer = await openai.responses.create({ ...asked, input, tools, max_output_tokens: 9 });
  return {
    status: whole.status,
    text: whole.output_text,
    answered: answer.status,
    kinds: [...kinds.slice(0, 2), kinds.at(-1)],
    errors: await errors(asked, tools),
  };
}

async function errors(asked, tools) {
  const found = [];
  for (const more of [
    { previous_response_id: "resp_1" },
    { text: { format: { type: "json_schema", name: "a", schema: { not: {} } } } },
    { tools, tool_choice: { type: "function", name: "fly" } },
    { store: true },
  ]) {
    await openai.responses.create({ ...asked, ...more }).catch((error) => found.push(error.param));
  }
  return found;
}

async function batch(model) {
  const url = "/v1/responses";
  const body = { model, input: QUESTION, max_output_tokens: 5 };
  const asked = [["good", {}], ["bad", { store: true }]].map(([custom_id, more]) => (
    { custom_id, method: "POST", url, body: { ...body, ...more } }
  ));
  const lines = asked.map((one) => JSON.stringify(one)).join("\n");
  const content = await OpenAI.toFile(Buffer.from(lines), "requests.jsonl");
  const file = await openai.files.create({ file: content, purpose: "batch" });
  const wanted = { input_file_id: file.id, endpoint: url, completion_window: "24h" };
  const other = await openai.batches.create(wanted);
  assert.match((await openai.batches.cancel(other.id)).status, /^cancell/);
  let made = await openai.batches.create({ ...wanted, metadata: { a: "b" } });
  while (["validating", "in_progress", "finalizing"].includes(made.status)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    made = await openai.batches.retrieve(made.id);
  }
  const listed = [];
  for await (const one of openai.batches.list({ limit: 1 })) listed.push(one.id);
  assert.deepEqual(listed.slice(0, 2), [made.id, other.id]);
  const told = [made.output_file_id, made.error_file_id].map(async (id) => JSON.parse(await (await openai.files.content(id)).text()));
  const [answer, error] = await Promise.all(told);
  assert.equal(answer.response.body.object, "response");
  return [
    made.status, made.request_counts.total, made.metadata, answer.custom_id, error.custom_id, error.response.status_code,
  ];
}

const model = process.argv[2];
await chat(model);
console.log(JSON.stringify({ ...(await responses(model)), batch: await batch(model) }));
