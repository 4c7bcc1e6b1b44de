// Building what is shown. Text from the server only ever becomes textContent.
import { now } from "./server.js";

export const element = (id) => document.getElementById(id);
export const LIVE = ["validating_files", "queued", "running"];

export function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (property.includes("-") || property === "role") made.setAttribute(property, value);
    else made[property] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function draw(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text) made.textContent = text;
  return made;
}

/** Put `children` in place of what was there, unless `signature` says that they are the same. */
export function renew(place, signature, build) {
  const text = JSON.stringify(signature);
  if (place.dataset.signature === text) return;
  place.dataset.signature = text;
  place.replaceChildren(...build().filter(Boolean));
}

export function forget(...places) {
  for (const place of places) {
    delete place.dataset.signature;
    place.replaceChildren();
  }
}

export function problem(text) {
  const place = element("problem");
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}

let refused = () => {};
/** What is done when the server does not take the tab's key. */
export const whenRefused = (then) => { refused = then; };

/** Tell what went wrong. Of a key that was left in the meantime nothing is told. */
export function fail(error) {
  if (error.name === "AbortError") return;
  error.status === 401 ? refused() : problem(error.message);
}

/** Do what a button is for, and let nobody press it meanwhile. */
export async function act(button, work) {
  button.disabled = true;
  await Promise.resolve(work()).catch(fail);
  button.disabled = false;
}

export const say = (text) => { element("said").textContent = text; };

export function choose(select, options, wanted) {
  const before = wanted ?? select.value;
  renew(select, options, () => options.map(([value, text]) => make("option", { value, textContent: text ?? value })));
  if (options.some(([value]) => value === before)) select.value = before;
}

/** A file as an option. */
export const fileOption = (file) => [file.id, `${file.filename} · ${size(file.bytes)} · ${ago(file.created_at)}`];

/** Choose a file that was uploaded right now: sending the form again does not upload it again. */
export function adopt(select, file) {
  const [value, textContent] = fileOption(file);
  select.append(make("option", { value, textContent }));
  select.value = value;
  select.dispatchEvent(new Event("change"));
}

// ---- words and numbers

export const words = (state) => (state === "validating_files" ? "checking" : state.replaceAll("_", " "));
export const badge = (state) => make("span", { className: `state ${state}`, textContent: words(state) });
export const when = (seconds) => new Date(1000 * seconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
export function number(value) {
  if (Math.abs(value) >= 100) return value.toFixed(0);
  const text = Number(value.toPrecision(3));
  return value && Math.abs(value) < 0.001 ? text.toExponential() : text.toString();
}
/** What a checkpoint has to show: its reward if answers had one, else its loss. */
export function scored(metrics) {
  const reward = metrics.full_valid_mean_reward ?? metrics.train_mean_reward;
  const loss = metrics.full_valid_loss ?? metrics.train_loss;
  if (reward !== undefined) return `reward ${number(reward)}`;
  return loss === undefined ? "" : number(loss);
}
export const short = (id) => `…${id.slice(-6)}`;

export function duration(seconds) {
  const [s, m, h] = [Math.max(0, seconds), seconds / 60, seconds / 3600];
  if (s < 60) return `${Math.round(s)} s`;
  if (m < 60) return `${Math.round(m)} min`;
  return h < 48 ? `${Math.floor(h)} h ${Math.floor(m % 60)} min` : `${Math.round(h / 24)} days`;
}

export function ago(seconds) {
  const passed = now() - seconds;
  if (passed < 45) return "just now";
  return passed < 7 * 86400 ? `${duration(passed)} ago` : new Date(1000 * seconds).toLocaleDateString(undefined, { dateStyle: "medium" });
}

export function size(bytes) {
  const power = Math.min(4, Math.floor(Math.log2(Math.max(bytes, 1)) / 10));
  return `${number(bytes / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** An id that is short on phones and whole elsewhere; read out whole. */
export const id = (text) => make("span", { className: "id", title: text },
  make("span", { className: "wide", textContent: text }), make("span", { className: "slim", "aria-hidden": "true", textContent: short(text) }));

/** What people call a job. */
export const called = (job) => job.user_provided_suffix || job.files[job.training_file] || job.id;

/** How a job does, in a line. */
export function news(job) {
  const at = job.progress && `step ${job.progress.step} of ${job.progress.total_steps}`;
  if (job.status === "validating_files") return "Looking at its files";
  if (job.status === "queued") return job.queue ? `${job.queue.position} of ${job.queue.length} in the queue` : "In the cluster's queue";
  if (job.status === "failed") return job.error?.message ?? "It is not known why";
  if (job.status === "succeeded") return `${job.progress ? `${job.progress.total_steps} steps, ` : ""}took ${duration(job.finished_at - job.created_at)}`;
  if (job.status !== "running") return at ? `Stopped at ${at}` : "Stopped before the first step";
  if (!at) return "Starting";
  if (job.progress.step >= job.progress.total_steps) return "Trained; now compared with the base model";
  const left = job.estimated_finish && job.estimated_finish - now();
  return `${at[0].toUpperCase()}${at.slice(1)}${left ? ` · ${duration(left)} left` : ""}`;
}

export function meter(job) {
  const share = job.progress ? job.progress.step / job.progress.total_steps : 0;
  const bar = make("i");
  bar.style.transform = `scaleX(${share})`;
  return make("span", {
    className: "progress", role: "progressbar", "aria-label": "Training steps", "aria-valuemin": 0,
    "aria-valuemax": job.progress?.total_steps ?? 1, "aria-valuenow": job.progress?.step ?? 0,
  }, bar);
}

/** The head and body of a table of texts; the first cell of a row names it. */
export function tableOf(heads, rows) {
  return [make("thead", {}, make("tr", {}, ...heads.map((textContent) => make("th", { scope: "col", textContent })))),
    make("tbody", {}, ...rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells.map((textContent) => make("td", { textContent })))))];
}

/** Ask twice for what cannot be undone; true at the second time. */
export function sure(button, question) {
  if (button.dataset.asked) return true;
  const before = button.textContent;
  button.dataset.asked = "yes";
  button.textContent = question;
  setTimeout(() => { delete button.dataset.asked; button.textContent = before; }, 4000);
  return false;
}
