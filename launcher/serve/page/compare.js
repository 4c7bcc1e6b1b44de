// Several jobs in one picture.
import { fresh, get } from "./server.js";
import { badge, called, element, forget, id, LIVE, make, number, renew } from "./dom.js";
import { Chart, joined, linesOf, metricsOf, switches } from "./chart.js";

const MOST = 6;
const MARKS = "ABCDEF";
let chart = null;
let known = new Map(); // id → curve
let change = () => {};

export function begin(changed) {
  change = changed;
  chart = new Chart(element("compared"), (zoom) => change({ zoom: zoom && zoom.join("-") }));
}

export function open() {
  known = new Map();
  forget(element("compared-jobs"));
  chart.clear("Loading…");
}

export async function show(list, query, isCurrent) {
  const ids = list.split(",").filter(Boolean).slice(0, MOST);
  const mine = known;
  const jobs = await Promise.all(ids.map(async (one) => {
    const { job } = await fresh(`fine_tuning/overview/${one}`);
    const before = mine.get(one);
    if (!before || before.wasLive) {
      const first = before ? (before.curve.train.at(-1)?.[0] ?? 0) : 0;
      const more = await get(`fine_tuning/jobs/${one}/curve?first=${first}&points=1000`);
      const curve = more.version === before?.curve.version || !first ? joined(before?.curve, more) : await get(`fine_tuning/jobs/${one}/curve?points=1000`);
      mine.set(one, { curve, wasLive: LIVE.includes(job.status) });
    }
    return job;
  }));
  if (!isCurrent() || mine !== known) return false;
  table(jobs);
  await redraw(list, query, isCurrent, jobs);
  return jobs.some((job) => LIVE.includes(job.status));
}

let latest = [];
export async function redraw(list, query, isCurrent, jobs = latest) {
  latest = jobs;
  const wanted = switches(element("compare-switches"), query, change, metricsOf(jobs.map((job) => job.method.type)));
  const isThin = wanted.zoom && [...known.values()].some(({ curve }) => curve.is_thinned);
  const lines = [];
  for (const [i, job] of jobs.entries()) {
    let { curve } = known.get(job.id);
    if (isThin) curve = await get(`fine_tuning/jobs/${job.id}/curve?first=${wanted.zoom[0]}&last=${wanted.zoom[1]}&points=1000`);
    const name = `${MARKS[i]} ${called(job).slice(0, 24)}`;
    lines.push(...linesOf(curve, wanted.metric, { train: { name, index: i, mark: MARKS[i] }, valid: { name: `${name}, validation`, index: i, isValid: true } }));
  }
  if (!isCurrent()) return;
  lines.length ? chart.draw({ lines, ...wanted }) : chart.clear("Nothing to draw yet.");
}

function table(jobs) {
  const last = (job) => {
    const { train, valid } = known.get(job.id).curve;
    return [train, valid].map((points) => points.at(-1)?.[1]).map((value) => (typeof value === "number" ? number(value) : "–"));
  };
  const ids = jobs.map((job) => job.id);
  renew(element("compared-jobs"), jobs.map((job) => [job.id, job.status, called(job), job.hyperparameters, ...last(job)]), () => jobs.map((job, i) => make("tr", {},
    make("th", { scope: "row" }, make("span", { className: `key c${i}`, textContent: MARKS[i] }), make("a", { href: `#jobs/${job.id}`, textContent: called(job), dir: "auto" }), make("small", {}, id(job.id))),
    make("td", {}, badge(job.status)), ...last(job).map((text) => make("td", { textContent: text })),
    make("td", {}, ...["n_epochs", "batch_size", "learning_rate_multiplier"].map((name) => `${job.hyperparameters[name]}`).join(" / ")),
    make("td", {}, ids.length > 1 ? make("a", { className: "button quiet", href: `#compare/${ids.filter((one) => one !== job.id).join(",")}`, textContent: "Remove", "aria-label": `Remove ${called(job)}` }) : null))));
}
