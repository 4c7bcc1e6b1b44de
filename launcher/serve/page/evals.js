// Evals: criteria that answers are measured by, and the runs that have measured some.
import { all, ask, firstLines, get, now, post, remove, upload } from "./server.js";
import { act, adopt, ago, badge, choose, element, fileOption, forget, make, number, renew, sure, tableOf, when } from "./dom.js";
import { CRITERIA, GraderForm, first } from "./grader.js";

const OPEN = ["queued", "in_progress"];
const MOST = 500; // evals, and runs, that are listed
const PAGE = 20; // items at a time
const LINES = 100; // of a file, by which items are described
const Z = 1.959964; // of 95 %
let change = () => {};
let again = () => {};
let forms = []; // of the criteria of a new eval
let judges = [];
let shown = null; // the run whose items are shown

export function begin(changed, poll) {
  change = changed;
  again = poll;
  element("eval-more").onclick = () => criterion();
  element("eval-away").onclick = (event) => act(event.target, async () => {
    const { id } = element("view-eval").dataset;
    if (!sure(event.target, "Really delete?")) return;
    await remove(`evals/${id}`);
    location.hash = "#evals";
  });
  element("run-by").onchange = element("run-asks").onchange = element("run-file").onchange = toggle;
  element("run-cancel").onclick = (event) => act(event.target, () => sure(event.target, "Really cancel?") && post(`evals/${shown.path}/cancel`).then(again));
  element("run-away").onclick = (event) => act(event.target, async () => {
    if (!sure(event.target, "Really delete?")) return;
    const [owner] = shown.eval;
    await remove(`evals/${shown.path}`);
    location.hash = `#evals/${owner}`;
  });
  element("items-more").onclick = () => act(element("items-more"), () => {
    shown.most += PAGE;
    return again();
  });
  for (const button of element("items-which").children) button.onclick = () => change({ items: button.dataset.which || null }, false);
}

// ---- all evals

export async function open() {
  element("evals-loading").hidden = false;
  element("no-evals").hidden = element("evals-table").hidden = true;
  forget(element("eval-list"));
  const [files, known] = await Promise.all([filesOfItems(), get("fine_tuning/judges")]);
  judges = known.data;
  choose(element("eval-file"), files);
  if (!forms.length) criterion();
}

async function filesOfItems() {
  const found = await Promise.all(["evals", "fine-tune"].map((purpose) => get(`files?purpose=${purpose}&limit=200`)));
  return found.flatMap(({ data }) => data).map(fileOption);
}

function criterion() {
  const place = make("div", { className: "form" });
  const form = new GraderForm(place, () => {}, CRITERIA);
  const away = make("button", { type: "button", className: "quiet", textContent: "Remove", "aria-label": "Remove this criterion" });
  const frame = make("fieldset", { className: "part form" }, make("legend", { textContent: "Criterion" }), place, make("div", { className: "actions" }, away));
  away.onclick = () => {
    if (forms.length < 2) return;
    forms = forms.filter((one) => one !== form);
    frame.remove();
  };
  form.show({ ...first(), name: `criterion ${forms.length + 1}` }, judges);
  forms.push(form);
  element("eval-criteria").append(frame);
}

export async function show(isCurrent) {
  const found = await all("evals", MOST, {}, "&order=desc");
  if (!isCurrent()) return false;
  element("evals-loading").hidden = true;
  element("no-evals").hidden = found.length > 0;
  element("evals-table").hidden = !found.length;
  renew(element("eval-list"), [found, Math.floor(now() / 60)], () => found.map((one) => make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, make("a", { className: "long", href: `#evals/${one.id}`, textContent: one.name, dir: "auto" }), make("small", { textContent: one.id })),
    make("td", { role: "cell", "data-label": "Criteria", textContent: one.testing_criteria.map((own) => own.name).join(", "), dir: "auto" }),
    make("td", { role: "cell", "data-label": "Created", textContent: ago(one.created_at), title: when(one.created_at) }))));
  return false;
}

/** The schema of items such as these: what some have, of which types, and what all have. */
function schemaOf(items) {
  const kind = (value) => (Array.isArray(value) ? "array" : value === null ? "null" : { string: "string", number: "number", boolean: "boolean" }[typeof value] ?? "object");
  const types = new Map();
  for (const item of items) for (const [name, value] of Object.entries(item)) types.set(name, (types.get(name) ?? new Set()).add(kind(value)));
  return { type: "object", properties: Object.fromEntries([...types].map(([name, found]) => [name, { type: found.size > 1 ? [...found] : [...found][0] }])), required: [...types.keys()].filter((name) => items.every((item) => Object.hasOwn(item, name))) };
}

function itemOf(line, i) {
  try {
    const record = JSON.parse(line);
    const item = record.item ?? record;
    if (typeof item === "object" && !Array.isArray(item)) return item;
  } catch { /* it is told */ }
  throw new Error(`Line ${i + 1} of the file is no JSON object.`);
}

export async function create() {
  const file = element("eval-file").value;
  if (!file) throw new Error("Upload a file first: its lines say what items have.");
  const items = (await firstLines((await ask(`files/${file}/content`)).body, LINES)).map(itemOf);
  if (!items.length) throw new Error("The file has no lines.");
  const made = await post("evals", {
    name: element("eval-name").value || null, testing_criteria: forms.map((form) => form.value),
    data_source_config: { type: "custom", item_schema: schemaOf(items), include_sample_schema: true },
  });
  location.hash = `#evals/${made.id}?file=${file}`;
}

// ---- one eval and its runs

export async function openEval(id, query) {
  forget(element("runs"), element("eval-reads"));
  element("runs-table").hidden = element("no-runs").hidden = true;
  element("view-eval").dataset.id = id;
  element("eval-title").textContent = "Eval";
  const [models, files] = await Promise.all([get("models"), filesOfItems()]);
  choose(element("run-model"), models.data.map((model) => [model.id]));
  choose(element("run-file"), [["", "Upload a new file"], ...files], query.get("file") ?? files[0]?.[0] ?? "");
  toggle();
}

function toggle() {
  const [asks, own, isKnown] = [element("run-by").value === "model", element("run-asks").value === "template", element("run-file").value !== ""];
  element("run-new-place").hidden = isKnown;
  element("run-new").disabled = isKnown;
  element("run-model-part").hidden = !asks;
  element("run-template-place").hidden = !asks || !own;
  element("run-reference-place").hidden = !asks || own;
  element("run-template").required = asks && own;
  element("run-reference").required = asks && !own;
}

export async function showEval(id, isCurrent) {
  const [one, runs] = await Promise.all([get(`evals/${id}`), all(`evals/${id}/runs`, MOST, {}, "&order=desc")]);
  if (!isCurrent()) return false;
  element("eval-title").textContent = one.name;
  renew(element("eval-reads"), one.testing_criteria, () => one.testing_criteria.map((own) => make("li", {}, make("b", { textContent: own.name, dir: "auto" }), make("span", { className: "soft", textContent: ` ${own.type}${own.pass_threshold === undefined ? "" : `, passes from ${own.pass_threshold}`}` }))));
  element("no-runs").hidden = runs.length > 0;
  element("runs-table").hidden = !runs.length;
  renew(element("runs"), [runs, Math.floor(now() / 60)], () => runs.map((run) => {
    const { passed, failed, errored, total } = run.result_counts;
    return make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader" }, make("a", { className: "long", href: `#evals/${id}/${run.id}`, textContent: run.name, dir: "auto" }), make("small", { textContent: run.id })),
      make("td", { role: "cell", "data-label": "Model", textContent: run.model || "answers in the data" }),
      make("td", { role: "cell", "data-label": "State" }, badge(run.status)),
      make("td", { role: "cell", "data-label": "Passed all" }, ...rate(passed, passed + failed)),
      make("td", { role: "cell", "data-label": "Items", textContent: `${passed + failed + errored} of ${total}` }),
      make("td", { role: "cell", "data-label": "Created", textContent: ago(run.created_at), title: when(run.created_at) }));
  }));
  return runs.some((run) => OPEN.includes(run.status));
}

export async function startRun() {
  const value = (name) => element(`run-${name}`).value;
  const bar = element("run-progress");
  let file = value("file");
  try {
    if (!file) {
      bar.hidden = false;
      const sent = await upload(element("run-new").files[0], (share) => { bar.value = share; }, "evals");
      adopt(element("run-file"), sent);
      file = sent.id;
    }
    const source = { type: "jsonl", source: { type: "file_id", id: file } };
    if (value("by") === "model") {
      const system = value("system").trim() ? [{ role: "developer", content: value("system") }] : [];
      Object.assign(source, {
        type: "completions", model: value("model"), sampling_params: { max_completion_tokens: Number(value("longest")), temperature: Number(value("temperature")) },
        input_messages: value("asks") === "template" ? { type: "template", template: [...system, { role: "user", content: value("template") }] } : { type: "item_reference", item_reference: value("reference") },
      });
    }
    const { id } = element("view-eval").dataset;
    const made = await post(`evals/${id}/runs`, { name: value("name") || null, data_source: source });
    location.hash = `#evals/${id}/${made.id}`;
  } finally {
    bar.hidden = true;
  }
}

// ---- one run

/** Wilson's interval of a share at 95 %. */
export function wilson(hits, count) {
  const share = hits / count;
  const middle = (share + (Z * Z) / (2 * count)) / (1 + (Z * Z) / count);
  const half = (Z * Math.sqrt((share * (1 - share)) / count + (Z * Z) / (4 * count * count))) / (1 + (Z * Z) / count);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function rate(hits, count) {
  if (!count) return [make("span", { textContent: "–" })];
  const [low, high] = wilson(hits, count).map((share) => 100 * share);
  const bar = make("span", { className: "interval", "aria-hidden": "true" }, make("i"), make("b"));
  bar.firstChild.style.left = `${low}%`;
  bar.firstChild.style.width = `${high - low}%`;
  bar.lastChild.style.left = `${(100 * hits) / count}%`;
  return [make("span", { textContent: `${number((100 * hits) / count)} %` }), make("small", { textContent: `${low.toFixed(0)} to ${high.toFixed(0)} %` }), bar];
}

export function openRun(object) {
  const [owner, id] = object.split("/");
  shown = { eval: [owner], path: `${owner}/runs/${id}`, which: null, most: PAGE, has: "" };
  element("run-title").textContent = "Run";
  element("run-back").href = `#evals/${owner}`;
  forget(element("run-state"), element("run-criteria"), element("run-usage"), element("items"));
  for (const name of ["run-cancel", "run-error", "run-report", "run-usage-card", "items-more"]) element(name).hidden = true;
}

export async function showRun(query, isCurrent) {
  const mine = shown;
  const run = await get(`evals/${mine.path}`);
  if (!isCurrent() || mine !== shown) return false;
  const { passed, failed, errored, total } = run.result_counts;
  element("run-title").textContent = run.name;
  renew(element("run-state"), [run.status, run.result_counts], () => [badge(run.status), make("span", { textContent: `${passed + failed + errored} of ${total} items: ${passed} pass all, ${failed} fail one, ${errored} with errors` })]);
  element("run-error").hidden = !run.error;
  element("run-error").textContent = run.error?.message ?? "";
  element("run-cancel").hidden = !OPEN.includes(run.status);
  element("run-report").hidden = false;
  element("run-report").href = run.report_url.slice(run.report_url.indexOf("reports/evals/"));
  const results = run.per_testing_criteria_results;
  renew(element("run-criteria"), results, () => results.map((one) => make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader", className: "long", textContent: one.testing_criteria, dir: "auto" }),
    make("td", { role: "cell", "data-label": "Pass" }, ...rate(one.passed, one.passed + one.failed)), ...["passed", "failed", "errored"].map((name) => make("td", { role: "cell", "data-label": name[0].toUpperCase() + name.slice(1), textContent: one[name] })))));
  element("run-usage-card").hidden = !run.per_model_usage.length;
  renew(element("run-usage"), run.per_model_usage, () => tableOf(["Model", "Questions", "Tokens read", "Tokens written"],
    run.per_model_usage.map((one) => [one.model_name, one.invocation_count, one.prompt_tokens, one.completion_tokens])));
  const which = ["pass", "fail"].includes(query.get("items")) ? query.get("items") : "";
  if (which !== mine.which) Object.assign(mine, { which, most: PAGE });
  const has = JSON.stringify([which, mine.most, run.result_counts]);
  if (has !== mine.has) {
    // All of them anew: what is graded late may belong before what is shown.
    const items = await all(`evals/${mine.path}/output_items`, mine.most, {}, which && `&status=${which}`);
    if (!isCurrent() || mine !== shown) return false;
    mine.has = has;
    renew(element("items"), [which, items.map((one) => one.id)], () => (items.length ? items.map(item) : [make("li", { className: "soft", textContent: "None yet." })]));
  }
  for (const button of element("items-which").children) button.setAttribute("aria-pressed", String(button.dataset.which === which));
  const graded = { "": passed + failed + errored, pass: passed, fail: failed }[which];
  element("items-more").hidden = mine.most >= graded;
  return OPEN.includes(run.status);
}

function item(one) {
  const answer = one.sample?.output?.at(-1)?.content ?? "";
  const error = one.sample?.error?.message ?? "";
  const results = one.results.map((own) => make("li", {}, badge(own.status), make("span", { textContent: ` ${own.name}: ${number(own.score)}`, dir: "auto" }),
    own.sample?.errors ? make("span", { className: "why", textContent: own.sample.errors.map(({ code, message }) => `${code}: ${message}`).join("; "), dir: "auto" }) : null,
    own.sample?.reply ? make("span", { className: "clip soft", textContent: own.sample.reply, title: own.sample.reply, dir: "auto" }) : null));
  return make("li", { className: "part" }, make("div", { className: "head" }, make("b", { textContent: `Item ${one.datasource_item_id}` }), badge(one.status)),
    answer ? make("p", { className: "turn", textContent: answer, dir: "auto" }) : null, error ? make("p", { className: "bad", textContent: error, dir: "auto" }) : null,
    make("ul", { className: "plain" }, ...results),
    make("details", {}, make("summary", { textContent: "The item" }), make("pre", { className: "code", textContent: JSON.stringify(one.datasource_item, null, 2), dir: "auto" })));
}
