// An eval by the official client for node: `node evals.mjs`. Grades answers that stand in the request, and prints what it has
// seen as JSON.
import OpenAI from "openai";
import { VERSION } from "openai/version";

const SCHEMA = { type: "object", properties: { answer: { type: "string" } }, required: ["answer"] };
const SAME = {
  type: "string_check",
  name: "same",
  input: "{{ sample.output_text }}",
  reference: "{{ item.answer }}",
  operation: "eq",
};
const content = ["7", "8"].map((said) => ({ item: { answer: "7" }, sample: { output_text: said } }));
const openai = new OpenAI({ maxRetries: 0 });
// Of version 4 they take ids one after the other.
const isOld = VERSION.startsWith("4.");

let made = await openai.evals.create({
  name: "mine",
  data_source_config: { type: "custom", item_schema: SCHEMA, include_sample_schema: true },
  testing_criteria: [SAME],
});
made = await openai.evals.update(made.id, { name: "ours", metadata: { a: "b" } });
const runs = openai.evals.runs;
const of = (call, id) => (isOld ? call(made.id, id) : call(id, { eval_id: made.id }));
let run = await runs.create(made.id, { name: "first", data_source: { type: "jsonl", source: { type: "file_content", content } } });
while (["queued", "in_progress"].includes(run.status)) {
  await new Promise((done) => setTimeout(done, 100));
  run = await of((...words) => runs.retrieve(...words), run.id);
}
const listed = isOld ? runs.outputItems.list(made.id, run.id, { limit: 1 }) : runs.outputItems.list(run.id, { eval_id: made.id, limit: 1 });
const items = [];
for await (const item of listed) items.push(item);
let canceled = "it can be";
try {
  await of((...words) => runs.cancel(...words), run.id);
} catch (error) {
  canceled = error.message;
}
const all = [];
for await (const one of runs.list(made.id)) all.push(one.id);
const gone = [(await of((...words) => runs.del?.(...words) ?? runs.delete(...words), run.id)).deleted];
gone.push((await (openai.evals.del?.(made.id) ?? openai.evals.delete(made.id))).deleted);
console.log(JSON.stringify({
  version: VERSION,
  name: made.name,
  status: run.status,
  passed: [run.result_counts.passed, run.result_counts.total],
  items: items.map((item) => item.status),
  score: items[0].results[0].score,
  said: items[0].sample.output[0].content,
  canceled: canceled.includes("already has status"),
  listed: all.length === 1 && all[0] === run.id,
  gone,
}));
