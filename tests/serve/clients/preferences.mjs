// Preferences by the official client for node: `node preferences.mjs MODEL PAIRS`. Tunes MODEL and prints what it has seen as
// JSON.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";

const ASKED = [{ role: "user", content: "Anna has 3 apples and gets 4 more. How many?" }];
const openai = new OpenAI({ maxRetries: 0 });

const [model, pairs] = process.argv.slice(2);
const file = await openai.files.create({ file: fs.createReadStream(pairs), purpose: "fine-tune" });
let job = await openai.fineTuning.jobs.create({
  model,
  training_file: file.id,
  seed: 7,
  method: { type: "dpo", dpo: { hyperparameters: { beta: 0.2, batch_size: 4, learning_rate_multiplier: 3, n_epochs: "auto" } } },
});
while (["validating_files", "queued", "running"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 250));
  job = await openai.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded", JSON.stringify(job.error));
const made = await openai.chat.completions.create({ model: job.fine_tuned_model, messages: ASKED, temperature: 0 });
const rows = (await (await openai.files.content(job.result_files[0])).text()).trimEnd().split("\n");
console.log(JSON.stringify({ job: job.id, model: job.fine_tuned_model, method: job.method, after: made.choices[0].message.content, rows }));
