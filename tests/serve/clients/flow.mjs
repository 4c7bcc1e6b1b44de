// Fine-tuning by the official client for node: `node flow.mjs FILE [JOB]`, the address and key from the environment as
// always. With JOB, which has succeeded, what is created here is cancelled at once. Prints what it has seen as JSON.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";

const ASKED = [{ role: "user", content: "Anna has 3 apples and gets 4 more. How many?" }];
const openai = new OpenAI({ maxRetries: 0 });

async function main(path, finished) {
  const file = await openai.files.create({ file: fs.createReadStream(path), purpose: "fine-tune" });
  await openai.files.waitForProcessing(file.id, { pollInterval: 200 });
  assert.equal((await openai.files.retrieve(file.id)).filename, "training_data.jsonl");
  assert.equal(await (await openai.files.content(file.id)).text(), fs.readFileSync(path, "utf8"));
  assert.ok((await all(openai.files.list({ limit: 1 }))).some((found) => found.id === file.id));
  let job = await openai.fineTuning.jobs.create({
    training_file: file.id,
    model: "gpt-3.5-turbo",
    suffix: "pirate",
    seed: 7,
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 12, batch_size: 4, learning_rate_multiplier: "auto" } } },
    metadata: { by: "node" },
  });
  const states = [job.status];
  if (finished) {
    assert.equal((await openai.fineTuning.jobs.cancel(job.id)).status, "cancelled");
    job = await openai.fineTuning.jobs.retrieve(finished);
  }
  while (["validating_files", "queued", "running"].includes(job.status)) {
    await new Promise((done) => setTimeout(done, 250));
    job = await openai.fineTuning.jobs.retrieve(job.id);
    if (job.status !== states.at(-1)) states.push(job.status);
  }
  assert.equal(job.status, "succeeded", JSON.stringify(job.error));
  assert.ok((await all(openai.fineTuning.jobs.list({ limit: 1 }))).some((found) => found.id === job.id));
  const events = await all(openai.fineTuning.jobs.listEvents(job.id, { limit: 3 }));
  const checkpoints = await all(openai.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  const rows = (await (await openai.files.content(job.result_files[0])).text()).trimEnd().split("\n");
  assert.equal((await openai.models.retrieve(job.fine_tuned_model)).id, job.fine_tuned_model);
  console.log(JSON.stringify({
    job: job.id,
    model: job.fine_tuned_model,
    trained_tokens: job.trained_tokens,
    states,
    messages: events.map((event) => event.message).reverse(),
    checkpoints: checkpoints.map((found) => found.fine_tuned_model_checkpoint),
    rows,
    models: (await all(openai.models.list())).map((model) => model.id),
    ...(await chat(job.fine_tuned_model)),
    errors: await errors(job.id),
  }));
  const gone = openai.files.delete ? await openai.files.delete(file.id) : await openai.files.del(file.id);
  assert.ok(gone.deleted);
}

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

async function chat(model) {
  const whole = await openai.chat.completions.create({ model, messages: ASKED, temperature: 0 });
  const stream = await openai.chat.completions.create({
    model, messages: ASKED, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  const chunks = await all(stream);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
  const plain = await openai.completions.create({ model, prompt: "Arr", max_tokens: 3, temperature: 0 });
  return {
    answer: whole.choices[0].message.content,
    reason: whole.choices[0].finish_reason,
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
    plain: plain.usage.completion_tokens,
  };
}

async function errors(job) {
  const found = [];
  for (const ask of [
    () => openai.files.retrieve("file-none"),
    () => openai.fineTuning.jobs.retrieve("ftjob-none"),
    () => openai.fineTuning.jobs.cancel(job),
    () => openai.fineTuning.jobs.create({ training_file: "file-none", model: "gpt-3.5-turbo" }),
    () => openai.chat.completions.create({ model: "none", messages: ASKED }),
    () => new OpenAI({ apiKey: "sk-wrong" }).models.list(),
  ]) {
    await ask().catch((error) => found.push(`${error.status} ${error.constructor.name} ${error.code ?? "None"}`));
  }
  return found;
}

await main(...process.argv.slice(2));
