// All jobs: filters that stand in the address, a table on desktops, cards on phones.
import { fresh } from "./server.js";
import { ago, badge, called, choose, element, forget, id, LIVE, make, meter, news, number, renew, say, when, words } from "./dom.js";
import { spark } from "./chart.js";

const PAGE = 50;
const MOST = 500;
const MOST_COMPARED = 6;
const STATES = ["running", "queued", "validating_files", "paused", "failed", "cancelled", "succeeded"];
const rows = new Map(); // id → its row
let chosen = []; // ids, in the order in which they were chosen
let change = () => {};

/** `changed` is told what is new in the address, and whether that is a step to come back to. */
export function begin(changed) {
  change = changed;
  let typed = 0;
  for (const [field, name] of [["find-text", "q"], ["find-label", "metadata"]]) {
    element(field).oninput = (event) => {
      clearTimeout(typed);
      typed = setTimeout(() => change({ [name]: event.target.value.trim() || null, more: null }, false), 250);
    };
  }
  element("find").onsubmit = (event) => event.preventDefault();
  element("find-model").onchange = (event) => change({ model: event.target.value || null, more: null });
  for (const button of [element("find-none"), element("find-reset")]) button.onclick = () => change({ q: null, state: null, model: null, metadata: null, more: null });
  element("chosen-none").onclick = () => change({ chosen: null }, false);
  element("chosen-compare").onclick = () => { location.hash = `#compare/${chosen.join(",")}`; };
}

export function open(query) {
  element("jobs-loading").hidden = rows.size > 0;
  for (const [field, name] of [["find-text", "q"], ["find-label", "metadata"]]) {
    if (document.activeElement !== element(field)) element(field).value = query.get(name) ?? "";
  }
}

/** Show what the server knows; returns whether something goes on. */
export async function show(query, isCurrent) {
  open(query);
  const pages = Math.max(1, Number(query.get("more")) || 1);
  const asked = new URLSearchParams({ limit: Math.min(MOST, pages * PAGE) });
  for (const name of ["q", "model", "metadata"]) if (query.get(name)) asked.set(name, query.get(name));
  for (const state of (query.get("state") ?? "").split(",").filter((one) => STATES.includes(one))) asked.append("state", state);
  const found = await fresh(`fine_tuning/overview?${asked}`);
  if (!isCurrent()) return false;
  element("jobs-loading").hidden = true;
  const isFiltered = ["q", "state", "model", "metadata"].some((name) => query.get(name));
  const count = Object.values(found.states).reduce((sum, n) => sum + n, 0);
  filters(found, query, count);
  element("no-jobs").hidden = count > 0;
  element("none-found").hidden = !count || found.data.length > 0;
  element("find").hidden = element("states").hidden = !count;
  element("jobs-table").hidden = !found.data.length;
  element("find-reset").hidden = !isFiltered || !found.data.length;
  const told = found.data.length < found.total ? `${found.data.length} of ${found.total} jobs, newest first` : `${found.total} ${found.total === 1 ? "job" : "jobs"}, newest first`;
  element("jobs-count").textContent = count ? told : "";
  element("more").hidden = found.data.length >= found.total || pages * PAGE >= MOST;
  element("more").onclick = () => change({ more: pages + 1 }, false);
  chosen = (query.get("chosen") ?? "").split(",").filter(Boolean).slice(0, MOST_COMPARED);
  fill(found.data);
  choice();
  return found.data.some((job) => LIVE.includes(job.status));
}

function filters(found, query, count) {
  const on = (query.get("state") ?? "").split(",").filter(Boolean);
  const there = STATES.filter((state) => found.states[state] || on.includes(state));
  const focused = element("states").contains(document.activeElement) ? document.activeElement.dataset.state : null;
  const toggle = (state) => () => {
    const next = state ? (on.includes(state) ? on.filter((one) => one !== state) : [...on, state]) : [];
    change({ state: next.join(",") || null, more: null });
  };
  const chip = (state, text, n, pressed) => make("button", { type: "button", className: `chip ${state}`, "data-state": state, "aria-pressed": String(pressed), onclick: toggle(state) },
    make("span", { textContent: text }), make("b", { textContent: n }));
  renew(element("states"), [there.map((state) => [state, found.states[state]]), on], () => [
    chip("", "All", count, !on.length), ...there.map((state) => chip(state, words(state), found.states[state] ?? 0, on.includes(state))),
  ]);
  if (focused !== null) element("states").querySelector(`[data-state="${focused}"]`)?.focus();
  choose(element("find-model"), [["", "All models"], ...found.models.map((name) => [name])], query.get("model") ?? "");
}

// Rows stay what they are: only cells whose content is new are made again.
function fill(jobs) {
  const ids = new Set(jobs.map((job) => job.id));
  for (const [id, row] of rows) if (!ids.has(id)) { row.remove(); rows.delete(id); }
  let before = null;
  const body = element("jobs");
  for (const job of jobs) {
    if (!rows.has(job.id)) rows.set(job.id, blank(job));
    const row = rows.get(job.id);
    const place = before ? before.nextSibling : body.firstChild;
    if (place !== row) body.insertBefore(row, place);
    before = row;
    update(row, job);
  }
}

function blank(job) {
  const cell = (name, label, properties = {}) => make("td", { className: name, role: "cell", "data-label": label, ...properties });
  const box = make("input", { type: "checkbox", value: job.id });
  box.onchange = () => pick(job.id, box.checked);
  return make("tr", { role: "row" },
    make("td", { className: "pick", role: "cell" }, make("label", {}, box, make("span", { className: "spoken" }))),
    cell("name", "Job"), cell("status", "State"), cell("news", "News"), cell("model", "Model"), cell("loss", "Loss"), cell("born", "Created"));
}

function update(row, job) {
  const [pickCell, name, status, tell, model, loss, born] = row.cells;
  pickCell.querySelector("input").checked = chosen.includes(job.id);
  pickCell.querySelector(".spoken").textContent = `Choose ${called(job)} to compare`;
  const file = job.files[job.training_file];
  const labels = Object.entries(job.metadata ?? {});
  renew(name, [called(job), file, labels], () => [
    make("a", { href: `#jobs/${job.id}`, textContent: called(job), dir: "auto" }),
    make("small", { className: "of" }, id(job.id), job.user_provided_suffix && file ? make("span", { className: "file", textContent: file, dir: "auto", title: file }) : null),
    labels.length ? make("small", {}, ...labels.map(([key, value]) => make("span", { className: "label", textContent: `${key}=${value}`, dir: "auto" }))) : null]);
  renew(status, job.status, () => [badge(job.status)]);
  const text = news(job);
  renew(tell, [job.status, text, job.progress], () => [
    make("span", { className: job.status === "failed" ? "why" : "", textContent: text, title: job.status === "failed" ? text : "", dir: job.status === "failed" ? "auto" : "" }),
    job.status === "running" ? meter(job) : null]);
  renew(model, job.model, () => [make("span", { textContent: job.model })]);
  renew(loss, job.spark, () => (job.spark.length > 1 ? [spark(job.spark, job.method.type === "reinforcement" ? "Reward" : "Training loss"), make("span", { textContent: number(job.spark.at(-1)[1]) })] : []));
  const age = ago(job.created_at);
  renew(born, age, () => [make("time", { textContent: age, title: when(job.created_at), dateTime: new Date(1000 * job.created_at).toISOString() })]);
}

function pick(job, is) {
  const next = is ? [...chosen, job] : chosen.filter((one) => one !== job);
  if (next.length > MOST_COMPARED) {
    say(`At most ${MOST_COMPARED} jobs are compared.`);
    rows.get(job).querySelector("input").checked = false;
    return;
  }
  chosen = next; // at once: the next box may be ticked before the list has come again
  choice();
  change({ chosen: next.join(",") || null }, false);
}

function choice() {
  element("chosen").hidden = !chosen.length;
  document.body.classList.toggle("choosing", chosen.length > 0);
  element("chosen-count").textContent = `${chosen.length} chosen`;
  element("chosen-compare").disabled = chosen.length < 2;
}

