// One job: how far it is, its curves, what it was made of and what it leaves.
import { all, fresh, get, now, post } from "./server.js";
import { ago, badge, called, duration, element, fail, forget, LIVE, make, news, number, renew, say, scored, size, sure, when, words } from "./dom.js";
import { Chart, joined, legend, linesOf, metricsOf, switches } from "./chart.js";

const STEPS = 2000; // events of steps that are listed at most
const NAMES = { train: { name: "training", index: 0 }, valid: { name: "validation", index: 1, isValid: true } };
const CARDS = ["facts", "events", "legend", "checkpoints", "reports", "comparison", "downloads", "job-state", "job-meter"];
let chart = null;
let state = null; // what is known of the job that is shown
let change = () => {};

export function begin(changed, again) {
  change = changed;
  chart = new Chart(element("curve"), (zoom) => change({ zoom: zoom && zoom.join("-") }));
  for (const button of element("job-actions").querySelectorAll("button")) {
    button.onclick = async () => {
      const does = button.dataset.does;
      if (does === "cancel" && !sure(button, "Really cancel?")) return;
      button.disabled = true;
      await post(`fine_tuning/jobs/${state.id}/${does}`).then(again, fail);
      button.disabled = false;
    };
  }
  element("events-all").onclick = () => listSteps();
  element("id-copy").onclick = () => navigator.clipboard?.writeText(state.id).then(() => say("The id is copied."), () => say("The id could not be copied."));
}

export function open(id) {
  state = { id, status: "", method: "", curve: null, steps: null };
  forget(...CARDS.map(element));
  chart.clear("Loading…");
  for (const name of ["checkpoints-card", "reports-card", "comparison-card", "downloads-card", "job-error", "job-try", "events-all", "report"]) element(name).hidden = true;
  for (const button of element("job-actions").querySelectorAll("button")) button.hidden = true;
  element("job-title").textContent = "Job";
  element("job-id").textContent = id;
}

/** Show what the server knows; returns whether something goes on. */
export async function show(id, query, isCurrent) {
  const mine = state;
  const since = mine.curve && [...mine.curve.train, ...mine.curve.valid].reduce((most, p) => Math.max(most, p[0]), 0);
  const [found, more] = await Promise.all([fresh(`fine_tuning/overview/${id}`), curveOf(id, since)]);
  if (!isCurrent() || mine !== state) return false;
  if (more.version !== mine.curve?.version && since) mine.curve = await curveOf(id, 0);
  else mine.curve = joined(mine.curve, more);
  const { job, events } = found;
  mine.method = job.method.type;
  head(job);
  facts(job);
  list(events);
  await plot(query, isCurrent);
  if (mine.status !== job.status) {
    if (mine.status) say(`The job is ${words(job.status)}.`);
    mine.status = job.status;
    left(job, isCurrent).catch(fail);
  }
  return LIVE.includes(job.status);
}

// From the last step on, not behind it: a validation may have come to it.
const curveOf = (id, first) => get(`fine_tuning/jobs/${id}/curve?first=${first ?? 0}`);

function head(job) {
  element("job-title").textContent = called(job);
  renew(element("job-state"), [job.status, news(job)], () => [badge(job.status), make("span", { textContent: job.status === "failed" ? "" : news(job) })]);
  const bar = element("job-meter");
  const { step = 0, total_steps: steps = 1 } = job.progress ?? {};
  bar.setAttribute("aria-valuemax", steps);
  bar.setAttribute("aria-valuenow", step);
  bar.classList.toggle("off", !LIVE.includes(job.status) && job.status !== "paused");
  if (!bar.firstChild) bar.append(make("i"));
  bar.firstChild.style.transform = `scaleX(${step / steps})`;
  element("job-error").hidden = !job.error;
  element("job-error").textContent = job.error?.message ?? "";
  const can = { pause: LIVE.includes(job.status), resume: job.status === "paused", cancel: [...LIVE, "paused"].includes(job.status) };
  for (const does of Object.keys(can)) element(`job-${does}`).hidden = !can[does];
  element("job-try").hidden = job.status !== "succeeded";
  element("job-try").href = `#try/${encodeURIComponent(job.fine_tuned_model)}`;
  const rewards = job.method.type === "reinforcement";
  element("job-again").href = `#new?${new URLSearchParams({ file: job.training_file, model: job.model, method: job.method.type, ...(rewards && { job: job.id }) })}`;
  element("job-grader").hidden = !rewards;
  element("job-grader").href = `#graders?job=${encodeURIComponent(job.id)}`;
}

function facts(job) {
  const { hyperparameters, grader } = job.method[job.method.type];
  const { n_epochs, batch_size, learning_rate_multiplier, beta, compute_multiplier, eval_interval, eval_samples, reasoning_effort } = hyperparameters;
  const file = (id) => id && (job.files[id] ?? `${id} (deleted)`);
  const known = Object.entries({
    "Model": job.fine_tuned_model, "Base model": job.model, "Method": job.method.type, "Training file": file(job.training_file), "Validation file": file(job.validation_file),
    "Epochs": n_epochs, "Batch size": batch_size, "Learning rate ×": learning_rate_multiplier, "Beta": beta,
    "Grader": grader && `${grader.name} (${grader.type})`, "Compute ×": compute_multiplier, "Validation every": eval_interval && `${eval_interval} steps`, "Answers a question": eval_samples,
    "Reasoning effort": reasoning_effort === "default" ? null : reasoning_effort, "Seed": job.seed,
    "Trained tokens": job.trained_tokens?.toLocaleString(), "Created": when(job.created_at),
    "Expected end": job.estimated_finish && when(job.estimated_finish), "Finished": job.finished_at && when(job.finished_at),
    "Took": job.finished_at && duration(job.finished_at - job.created_at),
    ...Object.fromEntries(Object.entries(job.metadata ?? {}).map(([key, value]) => [`metadata: ${key}`, value])),
  }).filter(([, value]) => value !== null && value !== undefined && value !== 0);
  renew(element("facts"), known, () => known.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value, dir: "auto" })]));
}

async function plot(query, isCurrent) {
  const wanted = switches(element("curve-switches"), query, change, metricsOf([state.method]));
  let { curve } = state;
  // Of a long run there are not all points: a part is asked for as it is.
  if (wanted.zoom && curve.is_thinned) curve = await get(`fine_tuning/jobs/${state.id}/curve?first=${wanted.zoom[0]}&last=${wanted.zoom[1]}`);
  if (!isCurrent()) return;
  const lines = linesOf(curve, wanted.metric, NAMES);
  renew(element("legend"), lines.map((line) => line.name), () => legend(lines));
  lines.length ? chart.draw({ lines, ...wanted }) : chart.clear(curve.train.length ? "This was not measured." : "Nothing yet: the curve begins with the first step.");
}

/** Draw again what is known: only the address has changed. */
export const redraw = (query, isCurrent) => (state?.curve ? plot(query, isCurrent) : undefined);

const line = (event) => make("li", { className: event.level },
  make("time", { textContent: ago(event.created_at), title: when(event.created_at), dateTime: new Date(1000 * event.created_at).toISOString() }), make("span", { textContent: event.message, dir: "auto" }));

function list(events) {
  element("events-all").hidden = !state.curve?.train.length || state.steps !== null;
  if (state.steps) return;
  renew(element("events"), [events.map((event) => event.id), Math.floor(now() / 60)], () => events.map(line));
}

async function listSteps() {
  const mine = state;
  element("events-all").disabled = true;
  try {
    const events = await all(`fine_tuning/jobs/${mine.id}/events`, STEPS);
    if (mine !== state) return;
    mine.steps = events;
    renew(element("events"), [mine.id, "all"], () => events.map(line));
    element("events-all").hidden = true;
  } catch (error) {
    fail(error);
  }
  element("events-all").disabled = false;
}

// What a job has left so far; asked for whenever its state changes.
async function left(job, isCurrent) {
  const [checkpoints, reports, downloads] = await Promise.all([
    all(`fine_tuning/jobs/${job.id}/checkpoints`, 100), get(`fine_tuning/jobs/${job.id}/reports`), get(`fine_tuning/jobs/${job.id}/downloads`),
  ]);
  if (!isCurrent() || job.id !== state.id) return;
  element("checkpoints-card").hidden = !checkpoints.length;
  renew(element("checkpoints"), checkpoints.map((point) => [point.id, point.metrics]), () => checkpoints.map((point) => {
    const name = point.fine_tuned_model_checkpoint;
    const score = scored(point.metrics);
    return make("li", {}, make("span", { textContent: `Step ${point.step_number}` }), make("span", { className: "soft", textContent: !score || score.startsWith("reward") ? score : `loss ${score}` }),
      make("a", { href: `#try/${encodeURIComponent(name)}`, textContent: "Try", "aria-label": `Try the checkpoint of step ${point.step_number}`, title: name }));
  }));
  element("comparison-card").hidden = !reports.comparison.length;
  renew(element("comparison"), reports.comparison, () => compare(reports.comparison));
  element("reports-card").hidden = !reports.data.length;
  element("report").hidden = true;
  renew(element("reports"), reports.data.map((report) => report.kind), () => reports.data.map((report) =>
    make("button", { type: "button", textContent: report.title, onclick: () => openReport(job.id, report.kind) })));
  element("downloads-card").hidden = !downloads.data.length;
  const titles = { results: "Numbers of all steps", training: "Training file", validation: "Validation file", model: "Model" };
  renew(element("downloads"), downloads.data.map(({ kind, filename, bytes }) => [kind, filename, bytes]), () => downloads.data.map((one) => make("li", {},
    make("span", {}, make("b", { textContent: titles[one.kind] }), make("small", { textContent: `${one.filename}, ${size(one.bytes)}`, dir: "auto" })),
    make("button", { type: "button", textContent: "Download", "aria-label": `Download ${titles[one.kind]}, ${size(one.bytes)}`, onclick: () => download(job.id, one.kind) }))));
}

function compare(rows) {
  const heads = ["Metric", "Base", "Tuned", "Verdict"].map((text) => make("th", { scope: "col", textContent: text }));
  const body = rows.map(({ metric, base, tuned, verdict }) => make("tr", {},
    make("th", { scope: "row", textContent: metric.replaceAll("_", " ") }),
    ...[number(base), number(tuned), verdict].map((text) => make("td", { textContent: text }))));
  return [make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body)];
}

// Links are good for a short while, so each is asked for when it is needed.
async function linkOf(path, kind) {
  const found = await get(path).catch(fail);
  return found?.data.find((one) => one.kind === kind);
}

async function openReport(job, kind) {
  const found = await linkOf(`fine_tuning/jobs/${job}/reports`, kind);
  if (!found) return;
  const frame = element("report");
  frame.hidden = false;
  frame.title = found.title;
  frame.src = found.url;
  frame.scrollIntoView({ block: "nearest" });
}

async function download(job, kind) {
  const found = await linkOf(`fine_tuning/jobs/${job}/downloads`, kind);
  if (!found) return;
  const link = make("a", { href: found.url, download: found.filename });
  document.body.append(link);
  link.click();
  link.remove();
}
