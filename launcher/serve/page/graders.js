// Write a grader, and try it on lines of a file before a job is made of it.
import { ask, firstLines, get, post } from "./server.js";
import { choose, element, fail, fileOption, make, number, say } from "./dom.js";
import { GraderForm, UNSHOWN, faultOf, first } from "./grader.js";

const SHELF = "launcher-serve-graders";
const DRAFTS = 20;
const AT_ONCE = 2; // requests under way: the server takes turns between projects
const MOST = 200; // lines
const LONGEST_WAIT_S = 60;
let drafts = []; // the one that is written now, then others of this tab
let taken = () => {}; // the address names a job no more
let form = null;
let isJson = false;
let run = null; // what is tried now, or was last

// ---- graders that are written; they stay in this tab

/** The text of the grader that was written last. */
export const draft = () => drafts[0] ?? "";
export const keep = (text) => hold([text, ...drafts.slice(1)]);

/** Write on at the draft that was left longest. */
export const turn = () => hold([...drafts.slice(-1), ...drafts.slice(0, -1)]);

function hold(texts) {
  drafts = texts.slice(0, DRAFTS);
  try { sessionStorage.setItem(SHELF, JSON.stringify(drafts)); } catch { /* they stay in memory */ }
}

/** Once, the grader of the job that the address names is a draft, before those that are there. */
export async function take(query) {
  const [id, here] = [query.get("job"), location.hash];
  if (!id) return;
  const { method } = await get(`fine_tuning/jobs/${encodeURIComponent(id)}`);
  if (location.hash !== here) return;
  taken();
  if (!method.reinforcement?.grader) return;
  const text = JSON.stringify(method.reinforcement.grader, null, 2);
  const known = drafts.find((one) => same(one) === same(text)) ?? text;
  hold([known, ...drafts.filter((one) => one && one !== known)]);
}

const same = (text) => (faultOf(text) ? text : JSON.stringify(JSON.parse(text)));

/** A button that turns to another draft is there if there is one. */
export function offer(button) {
  button.hidden = drafts.length < 2;
  button.textContent = `Another of ${drafts.length} drafts`;
}

const text = () => (isJson ? element("grader-json").value : JSON.stringify(form.value, null, 2));

export function begin(whenTaken) {
  taken = whenTaken;
  try { drafts = JSON.parse(sessionStorage.getItem(SHELF) ?? "[]"); } catch { /* there are none */ }
  element("grader-other").onclick = () => { turn(); display(); };
  form = new GraderForm(element("grader-form"), () => { keep(text()); told(""); });
  element("grader-as-form").onclick = () => toForm();
  element("grader-as-json").onclick = () => toJson();
  element("grader-json").oninput = () => { keep(text()); told(faultOf(text())); };
  element("grader-check").onclick = () => check();
  element("grader-use").onclick = () => { location.hash = "#new?method=reinforcement"; };
  element("grader-stop").onclick = () => { run.isOver = true; };
  for (const name of ["grader-file", "grader-answer"]) element(name).onchange = toggle;
}

export async function open(query) {
  const [files, models, judges] = await Promise.all([get("files?purpose=fine-tune&limit=200"), get("models"), get("fine_tuning/judges"), take(query)]);
  choose(element("grader-file"), [...files.data.map(fileOption), ["", "A file of this device"]],
    query.get("file") ?? (element("grader-file").value || files.data[0]?.id || ""));
  choose(element("grader-model"), models.data.map((model) => [model.id]));
  form.judges = judges.data;
  display();
  toggle();
}

/** The draft, as JSON if there is no form of it. */
function display() {
  const given = draft() || JSON.stringify(first(), null, 2);
  element("grader-json").value = given;
  const fault = formed(given);
  mode(isJson || fault !== "");
  if (fault) told(fault);
  offer(element("grader-other"));
}

/** Put a text into the form; returns why it cannot be there. */
function formed(given) {
  const fault = faultOf(given);
  if (fault) return fault;
  return form.show(JSON.parse(given)) ? "" : UNSHOWN;
}

function toForm() {
  const fault = isJson ? formed(text()) : "";
  return fault ? told(fault) : mode(false);
}

function toJson() {
  if (!isJson) element("grader-json").value = text();
  mode(true);
}

function mode(json) {
  isJson = json;
  element("grader-json-place").hidden = !json;
  element("grader-form").hidden = json;
  element("grader-as-json").setAttribute("aria-pressed", String(json));
  element("grader-as-form").setAttribute("aria-pressed", String(!json));
  told(json ? faultOf(text()) : "");
}

function told(what, isGood = false) {
  element("grader-said").textContent = what;
  element("grader-said").className = isGood ? "good" : "bad";
}

function toggle() {
  const [known, by] = [element("grader-file").value !== "", element("grader-answer").value];
  element("grader-own").disabled = known;
  element("grader-own-place").hidden = known;
  for (const [name, kind] of [["field", "field"], ["text", "text"], ["model", "model"]]) {
    element(`grader-${name}-place`).hidden = by !== kind;
    element(`grader-${name}`).disabled = by !== kind;
  }
}

async function check() {
  const found = faultOf(text());
  if (found) return told(found);
  element("grader-check").disabled = true;
  try {
    await post("fine_tuning/alpha/graders/validate", { grader: JSON.parse(text()) });
    told("A job can have this grader.", true);
  } catch (error) {
    error.status === 401 || error.name === "AbortError" ? fail(error) : told(error.message);
  }
  element("grader-check").disabled = false;
  return undefined;
}

// ---- trying it

/** The first lines of the file, as objects. */
async function linesOf(most) {
  const known = element("grader-file").value;
  const own = element("grader-own").files[0];
  if (!known && !own) throw new Error("Choose a file.");
  const stream = known ? (await ask(`files/${known}/content`)).body : own.stream();
  return (await firstLines(stream, most)).map((line, i) => {
    try { return withPrompt(JSON.parse(line)); } catch { throw new Error(`Line ${i + 1} of the file is no JSON.`); }
  });
}

/** A line as a job gives it to its grader: `prompt` is the text of its messages. */
function withPrompt(record) {
  const texts = Array.isArray(record.messages) ? record.messages.map((message) => message.content).filter((content) => typeof content === "string") : [];
  return { prompt: texts.join("\n\n"), ...record };
}

const at = (item, path) => path.split(".").reduce((value, name) => value?.[name], item);

/** Ask as soon as the server lets one: it says when. */
async function patiently(mine, work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (error.status !== 429 || mine.isOver) throw error;
      const seconds = Math.min(LONGEST_WAIT_S, Math.max(1, error.after || 1));
      progress(mine, `The server asks to wait for ${seconds} s.`);
      await new Promise((done) => { setTimeout(done, 1000 * seconds); });
      if (mine.isOver) throw error;
    }
  }
}

async function answerOf(mine, item) {
  if (mine.by === "text") return mine.text;
  if (mine.by === "field") {
    const value = at(item, mine.field);
    if (value === undefined) throw new Error(`The line has no field "${mine.field}".`);
    return typeof value === "string" ? value : JSON.stringify(value);
  }
  if (!Array.isArray(item.messages)) throw new Error("The line has no messages to answer.");
  const asked = { model: mine.model, messages: item.messages, max_tokens: 256, temperature: 0 };
  const found = await patiently(mine, () => post("chat/completions", asked));
  return found.choices[0].message.content ?? "";
}

export async function send() {
  const fault = faultOf(text());
  if (fault) throw new Error(fault);
  const value = (name) => element(`grader-${name}`).value;
  const mine = { grader: JSON.parse(text()), by: value("answer"), field: value("field").trim(), text: value("text"), model: value("model"), done: 0, scores: [], faulty: 0, isOver: false, all: 0 };
  run && (run.isOver = true);
  run = mine;
  keep(text());
  const items = await linesOf(Math.min(MOST, Number(value("lines"))));
  if (!items.length) throw new Error("The file has no lines.");
  mine.all = items.length;
  element("grader-results").replaceChildren();
  element("grader-results-card").hidden = false;
  element("grader-stop").hidden = false;
  progress(mine);
  const rows = items.map((_, i) => make("tr", {}, make("th", { scope: "row", textContent: i + 1 }), make("td", { className: "soft", textContent: "…" })));
  element("grader-results").replaceChildren(...rows);
  let next = 0;
  const worker = async () => {
    while (!mine.isOver && next < items.length) {
      const i = next++;
      await line(mine, items[i], rows[i]);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  } catch (error) {
    mine.isOver = true;
    for (const row of rows) if (row.cells.length < 3) row.remove();
    throw error;
  } finally {
    if (run === mine) {
      element("grader-stop").hidden = true;
      for (const row of rows) if (row.cells.length < 3) row.remove();
      progress(mine, mine.done < mine.all ? "Stopped." : "");
      say(element("grader-mean").textContent);
    }
  }
}

/** Grade a line and tell it; throws what holds of all lines. */
async function line(mine, item, row) {
  let answer = "";
  try {
    answer = await answerOf(mine, item);
    if (mine.isOver) return;
    const found = await patiently(mine, () => post("fine_tuning/alpha/graders/run", { grader: mine.grader, model_sample: answer, item }));
    const { flags, said } = errorsOf(found.metadata.errors);
    // An answer that lacks what is read of it has the lowest score; all else has none.
    const hasScore = flags.every((flag) => flag === "sample_parse_error");
    if (hasScore) mine.scores.push(found.reward);
    if (flags.length) mine.faulty += 1;
    tell(row, answer, found, hasScore, said);
  } catch (error) {
    const isOfGrader = error.status === 400 && /^grader\b/.test(error.param);
    if (error.name === "AbortError" || [401, 403].includes(error.status) || isOfGrader) throw error;
    if (mine.isOver && error.status === 429) return;
    mine.faulty += 1;
    tell(row, answer, null, false, error.message);
  }
  mine.done += 1;
  progress(mine);
}

function errorsOf(errors) {
  const details = ["python_grader_runtime_error_details", "model_grader_server_error_details", "python_grader_server_error_type"].map((name) => errors[name]).filter(Boolean);
  const flags = Object.keys(errors).filter((name) => errors[name] === true);
  return { flags, said: [...flags.map((name) => name.replaceAll("_", " ")), ...details].join(": ") };
}

function tell(row, answer, found, hasScore, said) {
  const parts = Object.entries(found?.sub_rewards ?? {}).map(([name, score]) => `${name} ${score === null ? "–" : number(score)}`);
  row.replaceChildren(row.firstChild,
    make("td", { className: "score", textContent: hasScore ? number(found.reward) : "–" }),
    make("td", { textContent: parts.join(", ") || "–" }),
    make("td", { className: "said" }, make("span", { className: "clip", textContent: answer, title: answer, dir: "auto" }), said && make("span", { className: "why", textContent: said, title: said, dir: "auto" })),
    make("td", { textContent: found ? `${number(found.metadata.execution_time)} s` : "–" }));
}

function progress(mine, what = "") {
  if (run !== mine) return;
  const bar = element("grader-progress");
  bar.hidden = mine.isOver || mine.done >= mine.all;
  bar.max = mine.all || 1;
  bar.value = mine.done;
  const mean = mine.scores.length ? `mean score ${number(mine.scores.reduce((sum, one) => sum + one, 0) / mine.scores.length)}` : "no score yet";
  element("grader-mean").textContent = [`${mine.done} of ${mine.all} lines, ${mean}${mine.faulty ? `, ${mine.faulty} with errors` : ""}.`, what].filter(Boolean).join(" ");
}
