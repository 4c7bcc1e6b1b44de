// Reinforcement by the official client for node: `node reinforcement.mjs QUESTIONS`. Tries a grader, makes a model answer by it,
// and prints what it has seen as JSON.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";

const grader = {
  type: "string_check",
  name: "has its letter",
  input: "{{ sample.output_text }}",
  reference: "{{ item.label }}",
  operation: "ilike",
};
const openai = new OpenAI({ maxRetries: 0 });
const { graders } = openai.fineTuning.alpha;

assert.deepEqual((await graders.validate({ grader })).grader, grader);
const tried = await graders.run({ grader, model_sample: "He is here.", item: { label: "e" } });
const unknown = await graders.run({ grader, model_sample: "He is here.", item: {} });

const file = await openai.files.create({ file: fs.createReadStream(process.argv[2]), purpose: "fine-tune" });
let job = await openai.fineTuning.jobs.create({
  model: "gpt-3.5-turbo",
  training_file: file.id,
  seed: 7,
  method: { type: "reinforcement", reinforcement: { grader, hyperparameters: { n_epochs: 1, batch_size: 16, compute_multiplier: 0.25 } } },
});
while (["validating_files", "queued", "running"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 250));
  job = await openai.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded", JSON.stringify(job.error));
const rows = (await (await openai.files.content(job.result_files[0])).text()).trimEnd().split("\n");
console.log(JSON.stringify({ model: job.fine_tuned_model, method: job.method, tried, unknown, rows }));
