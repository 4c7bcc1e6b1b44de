"use strict";
// Text from the server only ever becomes textContent. The key is in this tab's storage alone.
const element = (id) => document.getElementById(id);
const LIVE = ["validating_files", "queued", "running"];
const POLL_MS = 2000;
const IDLE_POLL_MS = 15000;
const PAGE = 30; // jobs of one request
const LATEST = 1000; // events of one job that are read
const SHELF = "launcher-serve-key";

let key = "";
let view = ""; // which view is shown, and of what
let timer = 0;
let shown = PAGE; // jobs that are asked for

// ---- talking to the server

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${key}`, ...options.headers };
  if (typeof options.body === "string") headers["Content-Type"] = "application/json";
  const response = await fetch(`v1/${path}`, { ...options, headers });
  if (!response.ok) {
    const found = await response.json().catch(() => null);
    throw Object.assign(new Error(found?.error?.message ?? `The server answered ${response.status}.`), { status: response.status });
  }
  return response;
}

const get = async (path) => (await ask(path)).json();
const post = async (path, body) => (await ask(path, { method: "POST", body: body && JSON.stringify(body) })).json();

async function all(path, most) {
  const found = [];
  for (let more = true; more && found.length < most; ) {
    const after = found.length ? `&after=${encodeURIComponent(found.at(-1).id)}` : "";
    const page = await get(`${path}?limit=100${after}`);
    found.push(...page.data);
    more = page.has_more && page.data.length > 0;
  }
  return found;
}

function fail(error) {
  if (error.status === 401) return forget("This key is not valid.");
  const lost = error instanceof TypeError; // what fetch throws without a network
  problem(lost ? "The server cannot be reached. Trying again…" : error.message);
}

function problem(text) {
  const place = element("problem");
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}

const say = (text) => { element("said").textContent = text; };

// ---- building what is shown

function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function draw(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text) made.textContent = text;
  return made;
}

const when = (seconds) => new Date(1000 * seconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const words = (state) => state.replaceAll("_", " ");
const badge = (state) => make("span", { className: `state ${state}`, textContent: words(state) });
const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString());

function choose(select, names, wanted) {
  const before = wanted || select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
  if (names.includes(before)) select.value = before;
}

// ---- jobs

async function showJobs() {
  const jobs = await get(`fine_tuning/jobs?limit=${shown}`);
  if (view !== "jobs") return false;
  const states = jobs.data.map((job) => `${job.id} ${job.status} ${job.fine_tuned_model}`).join("\n");
  element("no-jobs").hidden = jobs.data.length > 0;
  element("more").hidden = !jobs.has_more;
  const list = element("jobs");
  if (list.dataset.states !== states) {
    list.dataset.states = states;
    const focused = document.activeElement?.hash;
    list.replaceChildren(...jobs.data.map(row));
    if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }
  return jobs.data.some((job) => LIVE.includes(job.status));
}

function row(job) {
  const name = job.fine_tuned_model ?? (job.user_provided_suffix || job.id);
  const detail = [job.model, job.id, when(job.created_at)].join(" · ");
  const spark = make("span", { className: "spark" });
  if (job.status !== "validating_files") sparkline(job.id, spark);
  const link = make("a", { className: "job", href: `#jobs/${job.id}` },
    make("span", {}, make("b", { textContent: name }), make("small", { textContent: detail })), spark, badge(job.status));
  return make("li", {}, link);
}

async function sparkline(job, place) {
  const events = await get(`fine_tuning/jobs/${job}/events?limit=100`).catch(() => null);
  const points = events ? curves(events.data).train : [];
  if (points.length < 2) return;
  const [width, height] = [140, 36];
  const [x, y] = [scale(points.map((p) => p[0]), 2, width - 2), scale(points.map((p) => p[1]), height - 3, 3)];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(draw("polyline", { class: "line", points: points.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
  place.append(svg);
}

// ---- one job

async function showJob(id) {
  const [job, events] = await Promise.all([get(`fine_tuning/jobs/${id}`), all(`fine_tuning/jobs/${id}/events`, LATEST)]);
  if (view !== `jobs/${id}`) return false;
  const state = element("job-state");
  if (state.dataset.state !== `${id} ${job.status}`) {
    if (state.dataset.state?.startsWith(id)) say(`The job is ${words(job.status)}.`);
    state.dataset.state = `${id} ${job.status}`;
    state.replaceChildren(badge(job.status));
    extras(job);
  }
  element("job-title").textContent = job.fine_tuned_model ?? (job.user_provided_suffix || job.id);
  element("job-error").hidden = !job.error;
  element("job-error").textContent = job.error?.message ?? "";
  const can = { pause: LIVE.includes(job.status), resume: job.status === "paused", cancel: [...LIVE, "paused"].includes(job.status) };
  for (const does of Object.keys(can)) element(`job-${does}`).hidden = !can[does];
  element("job-try").hidden = job.status !== "succeeded";
  element("job-try").href = `#try/${encodeURIComponent(job.fine_tuned_model)}`;
  facts(job);
  progress(job, events);
  plot(curves(events));
  list(events);
  return LIVE.includes(job.status);
}

function facts(job) {
  const { n_epochs, batch_size, learning_rate_multiplier } = job.hyperparameters;
  const rows = {
    "Job": job.id, "Base model": job.model, "Training file": job.training_file, "Validation file": job.validation_file,
    "Epochs": n_epochs, "Batch size": batch_size, "Learning rate ×": learning_rate_multiplier, "Seed": job.seed,
    "Trained tokens": job.trained_tokens?.toLocaleString(), "Created": when(job.created_at),
    "Finished": job.finished_at && when(job.finished_at), "Result file": job.result_files[0],
  };
  const known = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined);
  element("facts").replaceChildren(...known.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
}

function progress(job, events) {
  const latest = events.find((event) => event.data?.total_steps);
  const place = element("job-progress");
  place.hidden = !latest || !LIVE.includes(job.status);
  if (place.hidden) return;
  const { step, total_steps: steps } = latest.data;
  place.setAttribute("aria-valuemax", steps);
  place.setAttribute("aria-valuenow", step);
  place.firstElementChild.style.transform = `scaleX(${step / steps})`;
}

function list(events) {
  const place = element("events");
  const newest = events[0]?.id ?? "";
  if (place.dataset.newest === newest) return;
  place.dataset.newest = newest;
  place.replaceChildren(...events.slice(0, 300).map((event) =>
    make("li", { className: event.level }, make("time", { textContent: when(event.created_at) }), event.message)));
}

// What a job has left so far; asked for whenever its state changes.
async function extras(job) {
  const [checkpoints, reports] = await Promise.all([
    all(`fine_tuning/jobs/${job.id}/checkpoints`, 100).catch(() => []),
    get(`fine_tuning/jobs/${job.id}/reports`).catch(() => ({ data: [], comparison: [] })),
  ]);
  if (view !== `jobs/${job.id}`) return;
  element("checkpoints-card").hidden = !checkpoints.length;
  element("checkpoints").replaceChildren(...checkpoints.map((point) => {
    const name = point.fine_tuned_model_checkpoint;
    return make("li", {}, `Step ${point.step_number}: `, make("a", { href: `#try/${encodeURIComponent(name)}`, textContent: name }));
  }));
  element("comparison-card").hidden = !reports.comparison.length;
  compare(reports.comparison);
  element("reports-card").hidden = !reports.data.length;
  element("report").hidden = true;
  element("reports").replaceChildren(...reports.data.map((report) =>
    make("button", { type: "button", textContent: report.title, onclick: () => openReport(job.id, report.kind) })));
}

function compare(rows) {
  const heads = ["Metric", "Base", "Tuned", "Verdict"].map((text) => make("th", { scope: "col", textContent: text }));
  const body = rows.map(({ metric, base, tuned, verdict }) => make("tr", {},
    make("th", { scope: "row", textContent: words(metric) }),
    ...[number(base), number(tuned), verdict].map((text) => make("td", { textContent: text }))));
  element("comparison").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body));
}

// Links to reports are good for minutes, so each is asked for when it is needed.
async function openReport(job, kind) {
  const reports = await get(`fine_tuning/jobs/${job}/reports`).catch(fail);
  const found = reports?.data.find((report) => report.kind === kind);
  if (!found) return;
  const frame = element("report");
  frame.hidden = false;
  frame.title = found.title;
  frame.src = found.url;
  frame.scrollIntoView({ block: "nearest" });
}

// ---- curves

function curves(events) {
  const points = { train: [], valid: [] };
  for (const { data } of events) {
    if (data?.step === undefined) continue;
    if (data.train_loss !== undefined) points.train.push([data.step, data.train_loss]);
    const valid = data.full_valid_loss ?? data.valid_loss;
    if (valid !== undefined) points.valid.push([data.step, valid]);
  }
  for (const line of Object.values(points)) line.sort((a, b) => a[0] - b[0]);
  return points;
}

function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
}

function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function plot({ train, valid }) {
  const figure = element("curve");
  const signature = JSON.stringify([train.length, valid.length, train.at(-1), figure.clientWidth]);
  if (figure.dataset.signature === signature) return;
  figure.dataset.signature = signature;
  const points = [...train, ...valid];
  element("legend").replaceChildren(...[["train", "training", train], ["valid", "validation", valid]]
    .filter(([, , line]) => line.length).map(([name, text]) => make("span", { className: name, textContent: text })));
  element("curve-at").textContent = "";
  if (!points.length) return figure.replaceChildren(make("p", { className: "soft", textContent: "Nothing yet: the curve begins with the first step." }));
  const width = Math.max(figure.clientWidth, 280);
  const [height, left, right, top, bottom] = [Math.min(300, 0.62 * width), 44, width - 8, 8, 26];
  const [steps, losses] = [points.map((p) => p[0]), points.map((p) => p[1])];
  if (Math.min(...losses) < Math.max(...losses) / 2) losses.push(0); // else all would look like a fall to nothing
  const [x, y] = [scale(steps, left, right), scale(losses, height - bottom, top)];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(train, valid) });
  for (const tick of ticks(Math.min(...losses), Math.max(...losses), 4)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of ticks(Math.min(...steps), Math.max(...steps), width / 110).filter(Number.isInteger)) {
    svg.append(draw("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, String(tick)));
  }
  for (const [name, line] of [["train", train], ["valid", valid]]) {
    const placed = line.map((p) => [x(p[0]), y(p[1])]);
    svg.append(draw("polyline", { class: `line ${name}`, points: placed.join(" ") }));
    if (line.length < 40) for (const [cx, cy] of placed) svg.append(draw("circle", { class: `dot ${name}`, cx, cy, r: 2.5 }));
  }
  const cursor = draw("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(cursor);
  svg.onpointermove = (event) => point(event, svg, cursor, x, train, valid);
  svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); element("curve-at").textContent = ""; };
  figure.replaceChildren(svg);
}

function told(train, valid) {
  const line = train.length ? train : valid;
  const [first, last] = [line[0], line.at(-1)];
  const more = train.length && valid.length ? `; validation loss ${number(valid.at(-1)[1])} at step ${valid.at(-1)[0]}` : "";
  return `Loss from ${number(first[1])} at step ${first[0]} to ${number(last[1])} at step ${last[0]}${more}`;
}

function point(event, svg, cursor, x, train, valid) {
  const box = svg.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const near = (line) => line.reduce((best, p) => (Math.abs(x(p[0]) - at) < Math.abs(x(best[0]) - at) ? p : best), line[0]);
  const nearest = near(train.length ? train : valid);
  for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(nearest[0]));
  cursor.setAttribute("visibility", "visible");
  const held = valid.find((p) => p[0] === nearest[0]);
  const parts = [`Step ${nearest[0]}`, train.length && `training ${number(nearest[1])}`, held && `validation ${number(held[1])}`];
  element("curve-at").textContent = parts.filter(Boolean).join(" · ");
}

// ---- a new job

async function showNew() {
  const models = (await get("models")).data.map((model) => model.id);
  choose(element("new-model"), models.filter((name) => !name.includes(":ckpt-step-")));
}

// XMLHttpRequest, since fetch does not tell how far an upload is.
function upload(file, tell) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file);
    request.open("POST", "v1/files");
    request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && tell(event.loaded / event.total);
    request.onerror = () => failed(new TypeError("no network"));
    request.onload = () => (request.status === 200 ? done(request.response)
      : failed(Object.assign(new Error(request.response?.error?.message ?? "The upload failed."), { status: request.status })));
    request.send(form);
  });
}

async function create() {
  const bar = element("new-progress");
  const tell = (share) => { bar.value = share; };
  const auto = (id) => (element(id).value === "" ? "auto" : Number(element(id).value));
  const [train, valid] = [element("new-train").files[0], element("new-valid").files[0]];
  bar.hidden = false;
  const training = await upload(train, tell);
  const validation = valid && (await upload(valid, tell));
  const hyperparameters = { n_epochs: auto("new-epochs"), batch_size: auto("new-batch"), learning_rate_multiplier: auto("new-rate") };
  const job = await post("fine_tuning/jobs", {
    model: element("new-model").value, training_file: training.id, validation_file: validation?.id ?? null,
    suffix: element("new-suffix").value || null, seed: element("new-seed").value === "" ? null : Number(element("new-seed").value),
    method: { type: "supervised", supervised: { hyperparameters } },
  });
  element("new-form").reset();
  location.hash = `#jobs/${job.id}`;
}

// ---- trying a model

let talk = [];
let answering = null;

async function showTry(wanted) {
  const models = (await get("models")).data.map((model) => model.id);
  const tuned = models.filter((name) => name.startsWith("ft:"));
  choose(element("try-model"), [...tuned, ...models.filter((name) => !name.startsWith("ft:"))], wanted);
}

function turn(role, text) {
  const made = make("div", { className: `turn ${role}`, textContent: text, dir: "auto" });
  element("talk").append(made);
  return made;
}

async function send() {
  const text = element("try-text").value.trim();
  if (!text || answering) return;
  const system = element("try-system").value.trim();
  const asked = [...talk, { role: "user", content: text }];
  turn("user", text);
  element("try-text").value = "";
  const place = turn("assistant", "…");
  answering = new AbortController();
  busy(true);
  let answer = "";
  try {
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...asked];
    const body = {
      model: element("try-model").value, messages, stream: true,
      temperature: Number(element("try-temperature").value), max_tokens: Number(element("try-longest").value),
    };
    const response = await ask("chat/completions", { method: "POST", body: JSON.stringify(body), signal: answering.signal });
    for await (const event of streamed(response.body)) {
      if (event.error) throw new Error(event.error.message);
      answer += event.choices[0]?.delta?.content ?? "";
      place.textContent = answer || "…";
    }
    problem("");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
  if (answer) talk = [...asked, { role: "assistant", content: answer }];
  place.textContent = answer || "(no answer)";
  answering = null;
  busy(false);
}

async function* streamed(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

function busy(is) {
  element("try-send").disabled = is;
  element("try-stop").hidden = !is;
}

function reset() {
  answering?.abort();
  talk = [];
  element("talk").replaceChildren();
}

// ---- views: what stands behind "#" in the address

async function route(focus = true) {
  clearTimeout(timer);
  const [name, ...rest] = location.hash.slice(1).split("/");
  const known = !key ? "key" : name === "jobs" && rest.length ? "job" : ["jobs", "new", "try"].includes(name) ? name : "jobs";
  const now = key ? [known === "job" ? "jobs" : known, ...rest].join("/") : "key";
  const isNew = now !== view;
  view = now;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${known}`;
  element("nav").hidden = element("leave").hidden = !key;
  for (const link of element("nav").children) {
    const here = link.hash === `#${known === "job" ? "jobs" : known}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (isNew) {
    problem("");
    if (known === "job") clear();
    if (focus) document.querySelector(`#view-${known} h1`).focus({ preventScroll: true });
    scrollTo(0, 0);
    if (known === "new") await showNew().catch(fail);
    if (known === "try") await showTry(decodeURIComponent(rest.join("/"))).catch(fail);
  }
  if (["jobs", "job"].includes(known)) await poll();
}

function clear() {
  for (const id of ["facts", "events", "curve", "legend", "checkpoints", "reports", "job-state"]) element(id).replaceChildren();
  for (const id of ["checkpoints-card", "reports-card", "comparison-card", "job-progress", "job-error", "job-try"]) element(id).hidden = true;
  for (const id of ["events", "curve", "job-state"]) for (const name of Object.keys(element(id).dataset)) delete element(id).dataset[name];
  element("job-title").textContent = view.slice(5);
}

async function poll() {
  clearTimeout(timer);
  const polled = view;
  let isLive = true;
  if (!document.hidden) {
    try {
      isLive = await (polled.startsWith("jobs/") ? showJob(polled.slice(5)) : showJobs());
      if (polled === view) problem("");
    } catch (error) {
      if (polled === view) fail(error);
    }
  }
  clearTimeout(timer);
  if (polled === view && key) timer = setTimeout(poll, isLive ? POLL_MS : IDLE_POLL_MS);
}

async function enter() {
  key = element("key").value.trim();
  try {
    await get("models");
  } catch (error) {
    return fail(error);
  }
  element("key").value = "";
  try { sessionStorage.setItem(SHELF, key); } catch { /* it stays in memory */ }
  problem("");
  route();
}

function forget(why = "") {
  key = "";
  try { sessionStorage.removeItem(SHELF); } catch { /* it was in memory only */ }
  reset();
  element("jobs").replaceChildren();
  delete element("jobs").dataset.states;
  route();
  problem(why);
}

const act = (form, work) => form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  problem("");
  await Promise.resolve(work()).catch(fail);
  button.disabled = answering !== null && button.id === "try-send";
  element("new-progress").hidden = true;
});

// What cannot be undone is asked for twice.
function sure(button) {
  button.textContent = "Really cancel?";
  setTimeout(() => { button.textContent = "Cancel"; }, 4000);
}

document.querySelector(".skip").onclick = (event) => {
  event.preventDefault(); // "#main" is no view
  element("main").focus();
};
act(element("key-form"), enter);
act(element("new-form"), create);
act(element("try-form"), send);
element("leave").onclick = () => forget();
element("try-stop").onclick = () => answering?.abort();
element("try-reset").onclick = () => { reset(); element("try-text").focus(); };
element("try-text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); element("try-form").requestSubmit(); }
};
element("more").onclick = () => { shown += PAGE; poll(); };
for (const button of element("job-actions").querySelectorAll("button")) {
  button.onclick = async () => {
    if (button.dataset.does === "cancel" && button.textContent === "Cancel") return sure(button);
    button.disabled = true;
    await post(`fine_tuning/jobs/${view.slice(5)}/${button.dataset.does}`).then(poll, fail);
    button.disabled = false;
  };
}
addEventListener("hashchange", () => route());
addEventListener("resize", () => view.startsWith("jobs/") && poll());
document.addEventListener("visibilitychange", () => !document.hidden && ["jobs", "job"].some((name) => view.startsWith(name)) && poll());

try { key = sessionStorage.getItem(SHELF) ?? ""; } catch { /* asked for each time */ }
route(false);
