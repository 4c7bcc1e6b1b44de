// Which view is shown, and when it asks the server again.
import { fresh, session } from "./server.js";
import { element, fail, problem, whenRefused } from "./dom.js";
import * as audit from "./audit.js";
import * as batches from "./batches.js";
import * as compare from "./compare.js";
import * as create from "./create.js";
import * as evals from "./evals.js";
import * as graders from "./graders.js";
import * as job from "./job.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as sharing from "./sharing.js";
import * as talk from "./talk.js";
import * as webhooks from "./webhooks.js";

const POLL_MS = 2000;
const IDLE_POLL_MS = 20000;
const LONGEST_MS = 60000;
let shown = ""; // view and object
let timer = 0;
let faults = 0; // in a row

// ---- the address: "#", view, "/" and object, "?" and how it is to be seen

function address() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  const [name, ...rest] = path.split("/");
  const object = decode(rest.join("/"));
  const known = ["jobs", "compare", "new", "models", "try", "graders", "evals", "batches", "webhooks", "audit"].includes(name) ? name : "jobs";
  const single = { jobs: "job", evals: object.includes("/") ? "run" : "eval" };
  return { view: (object && single[known]) || known, name: known, object, query: new URLSearchParams(query), path: object ? path : known };
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** What is new in the address; a step to come back to, unless it is one of many. */
function change(news, isStep = true) {
  put(news, isStep);
  route();
}

function put(news, isStep) {
  const { query, path } = address();
  for (const [name, value] of Object.entries(news)) value === null ? query.delete(name) : query.set(name, value);
  const text = query.toString();
  history[isStep ? "pushState" : "replaceState"](null, "", `#${path}${text ? `?${text}` : ""}`);
}

// ---- views

const VIEWS = {
  jobs: { open: ({ query }) => jobs.open(query), show: ({ query }, isCurrent) => jobs.show(query, isCurrent) },
  job: { open: ({ object }) => job.open(object), redraw: ({ query }, isCurrent) => job.redraw(query, isCurrent), show: ({ object, query }, isCurrent) => job.show(object, query, isCurrent) },
  compare: { open: () => compare.open(), redraw: ({ object, query }, isCurrent) => compare.redraw(object, query, isCurrent), show: ({ object, query }, isCurrent) => compare.show(object, query, isCurrent) },
  models: { open: () => models.open(), show: (_, isCurrent) => models.show(isCurrent) },
  new: { open: ({ query }) => create.open(query) },
  try: { open: ({ object }) => talk.open(object) },
  graders: { open: ({ query }) => graders.open(query) },
  evals: { open: () => evals.open(), show: (_, isCurrent) => evals.show(isCurrent) },
  eval: { open: ({ object, query }) => evals.openEval(object, query), show: ({ object }, isCurrent) => evals.showEval(object, isCurrent) },
  run: { open: ({ object }) => evals.openRun(object), show: ({ query }, isCurrent) => evals.showRun(query, isCurrent) },
  batches: { open: () => batches.open(), show: (_, isCurrent) => batches.show(isCurrent) },
  webhooks: { open: () => webhooks.open(), show: ({ query }, isCurrent) => webhooks.show(query, isCurrent) },
  audit: { open: () => audit.open(), show: ({ query }, isCurrent) => audit.show(query, isCurrent) },
  key: {},
};

async function route(focus = true) {
  clearTimeout(timer);
  const here = address();
  const view = session.key ? here.view : "key";
  const now = view === "key" ? "key" : `${view} ${here.object}`;
  const isNew = now !== shown;
  shown = now;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${view}`;
  element("nav").hidden = element("leave").hidden = view === "key";
  for (const link of element("nav").children) {
    link.hash === `#${here.name === "compare" ? "jobs" : here.name}` ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (isNew) element("nav").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  document.body.classList.toggle("choosing", view === "jobs" && here.query.has("chosen"));
  if (isNew) {
    problem("");
    if (focus) document.querySelector(`#view-${view} h1`).focus({ preventScroll: true });
    scrollTo(0, 0);
    await Promise.resolve(VIEWS[view].open?.(here)).catch(fail);
  } else {
    await Promise.resolve(VIEWS[view].redraw?.(here, () => shown === now)).catch(fail);
  }
  if (shown !== now) return;
  if (view !== "key" && !session.project) await fresh("fine_tuning/overview?limit=1").catch(fail);
  element("project").textContent = view === "key" ? "" : session.project;
  document.body.dataset.view = view; // it can be used now
  if (VIEWS[view].show && shown === now) await poll();
}

let asked = 0; // a later question makes an earlier one's answer void
async function poll() {
  clearTimeout(timer);
  const [mine, at] = [shown, ++asked];
  const here = address();
  const isCurrent = () => mine === shown && at === asked;
  let isLive = false;
  let wait = 0;
  try {
    if (!document.hidden) {
      isLive = await VIEWS[mine.split(" ")[0]].show(here, isCurrent);
      if (isCurrent() && faults) problem("");
      faults = 0;
    }
  } catch (error) {
    if (!isCurrent()) return;
    faults += 1;
    wait = Math.max(1000 * (error.after ?? 0), Math.min(LONGEST_MS, POLL_MS * 2 ** faults));
    fail(error);
  }
  if (!isCurrent() || !session.key) return;
  clearTimeout(timer);
  timer = setTimeout(poll, wait || (isLive ? POLL_MS : IDLE_POLL_MS));
}

// ---- the key

async function enter() {
  session.key = element("key").value.trim();
  try {
    await fresh("fine_tuning/overview?limit=1");
  } catch (error) {
    if (error.status !== 401) session.key = "";
    return fail(error);
  }
  const isOther = session.owner !== "" && session.owner !== session.project;
  if (isOther) session.clear();
  session.own();
  session.keep(session.key);
  if (isOther) return begin();
  element("key").value = "";
  problem("");
  return route();
}

/** The key is of no use any more; what its project has begun to write stays for another key of it. */
function refused() {
  clearTimeout(timer);
  asked += 1;
  session.keep("");
  sharing.close();
  route();
  problem("This key is not valid.");
}

function leave() {
  clearTimeout(timer);
  asked += 1;
  session.keep("");
  session.clear();
  begin();
}

/** Begin as a new tab does: no view has anything of another project then. */
function begin() {
  shown = "";
  element("main").hidden = true;
  for (const form of document.forms) form.autocomplete = "off"; // or the browser fills in what it had
  element("grader-json").autocomplete = "off";
  location.reload();
}

const sends = (form, work) => form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  problem("");
  await Promise.resolve(work()).catch(fail);
  button.disabled = false;
});

document.querySelector(".skip").onclick = (event) => {
  event.preventDefault(); // "#main" is no view
  element("main").focus();
};
jobs.begin(change);
job.begin(change, poll);
compare.begin(change);
create.begin();
models.begin(poll);
graders.begin(() => put({ job: null }, false));
evals.begin(change, poll);
batches.begin(poll);
webhooks.begin(change, poll);
audit.begin(change);
sharing.begin();
talk.begin();
sends(element("key-form"), enter);
sends(element("new-form"), create.send);
sends(element("try-form"), talk.send);
sends(element("grader-try"), graders.send);
sends(element("eval-form"), evals.create);
sends(element("run-form"), evals.startRun);
sends(element("batch-form"), batches.send);
sends(element("hook-form"), webhooks.send);
element("leave").onclick = leave;
addEventListener("hashchange", () => route());
document.addEventListener("visibilitychange", () => !document.hidden && session.key && VIEWS[shown.split(" ")[0]]?.show && poll());
whenRefused(refused);
session.recall();
route(false);
