"use strict";
// The judge's token stands behind "#" in the address, so that it is in no request line, log or referrer.
// As it stands: the browser has encoded what no header takes, and no token of ours has that.
const token = location.hash.slice(1);
const element = (id) => document.getElementById(id);
const waiting = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

const AHEAD = 3; // items loaded before they are needed
const TIMEOUT_MS = 20000;
const FADE_S = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.13;

let items = []; // ids in this judge's order
let votes = new Map(); // item -> {choice, comment}; the last one voted on stands last
let current = null; // item on the screen; undefined once all are judged
let shownAt = 0;
let busy = false; // between a vote and the next item
let unsaved = []; // changes that the server has not acknowledged, oldest first
let sending = false;
const loaded = new Map(); // item -> promise of its texts

async function ask(method, path, body) {
  const options = { method, headers: { Authorization: `Bearer ${token}` }, signal: AbortSignal.timeout(TIMEOUT_MS) };
  if (body) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.ok) return response.json();
  throw Object.assign(new Error(path), { status: response.status });
}

// Asks until there is an answer; gives up only where the server says that there is no such thing.
async function persist(path, failed) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask("GET", path);
    } catch (error) {
      if (error.status === 404) throw error;
      failed();
      await pause(tries);
    }
  }
}

// Half a second, a second, ... 15; over as soon as the browser is online again.
const pause = (tries) => Promise.race([waiting(Math.min(2 ** tries / 4, 15)), online()]);
const online = () => new Promise((done) => addEventListener("online", done, { once: true }));

// ---- keeping votes: each change waits in the browser's storage until the server has it

const shelf = "launcher-ab:" + token.slice(0, 8);

function keep() {
  try {
    unsaved.length ? localStorage.setItem(shelf, JSON.stringify(unsaved)) : localStorage.removeItem(shelf);
  } catch { /* a private window: they wait in memory */ }
}

function recall() {
  try {
    unsaved = JSON.parse(localStorage.getItem(shelf)) ?? [];
  } catch {
    unsaved = [];
  }
}

function change(method, item, body) {
  unsaved.push({ method, item, body });
  keep();
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  for (let tries = 0; unsaved.length; ) {
    const { method, item, body } = unsaved[0];
    try {
      await ask(method, `api/votes/${item}`, body);
      unsaved.shift();
      keep();
      tries = 0;
      tell("Saved");
    } catch (error) {
      if (error.status === 404) return refuse();
      tries += 1;
      const count = unsaved.length === 1 ? "1 vote is" : `${unsaved.length} votes are`;
      tell(`${count} not saved yet. Trying again…`, true);
      await pause(tries);
    }
  }
  sending = false;
  if (items.length && current === undefined) finish();
}

function tell(text, waits = false) {
  const place = element("saved");
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("waits", waits);
}

addEventListener("beforeunload", (event) => {
  if (unsaved.length) event.preventDefault();
});

// ---- showing: text only ever becomes textContent

function load(item) {
  if (!loaded.has(item)) {
    const failed = () => item === current && tell("No connection. Trying again…", true);
    loaded.set(item, persist(`api/items/${item}`, failed));
  }
  return loaded.get(item);
}

function fill(id, text) {
  const place = element(id);
  place.textContent = text.trim() === "" ? "(no answer)" : text;
  place.classList.toggle("empty", text.trim() === "");
}

const open = () => items.filter((item) => !votes.has(item));

async function show(item, comment = "") {
  current = item;
  if (item === undefined) return finish();
  const slow = setTimeout(tell, 400, "Loading…");
  const texts = await load(item);
  clearTimeout(slow);
  if (!unsaved.length && element("saved").textContent !== "Saved") tell("");
  fill("prompt", texts.prompt);
  fill("left", texts.left);
  fill("right", texts.right);
  mark(null);
  element("comment").value = comment;
  write(comment !== "", false);
  progress();
  reveal("judging");
  scrollTo(0, 0);
  element("prompt").focus({ preventScroll: true }); // a screen reader goes on from here
  shownAt = performance.now();
  busy = false;
  open().filter((other) => other !== item).slice(0, AHEAD).forEach(load);
}

function reveal(id) {
  for (const other of ["judging", "message"]) element(other).hidden = other !== id;
  element("judging").classList.remove("leaving");
  element("controls").hidden = id !== "judging" && !votes.size;
  element("choices").hidden = element("write").hidden = id !== "judging";
  element("undo").disabled = !votes.size;
}

function progress() {
  const number = element("count").querySelector("b");
  number.textContent = Math.min(votes.size + 1, items.length);
  number.nextSibling.textContent = ` of ${items.length}`;
  const bar = document.querySelector(".track");
  bar.setAttribute("aria-valuemax", items.length);
  bar.setAttribute("aria-valuenow", votes.size);
  bar.style.setProperty("--share", votes.size / items.length);
}

function mark(choice) {
  for (const button of document.querySelectorAll(".choice"))
    button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
  document.querySelector(".answer.a").classList.toggle("chosen", choice === "left");
  document.querySelector(".answer.b").classList.toggle("chosen", choice === "right");
}

function finish() {
  busy = false;
  progress();
  const waits = "Your last votes are being saved. Please keep this page open.";
  say("Thank you", unsaved.length ? waits : `You have judged all ${items.length}. You can close this page.`, true);
}

function say(title, text, done = false) {
  element("message-title").textContent = title;
  element("message-text").textContent = text;
  element("tick").toggleAttribute("hidden", !done);
  reveal("message");
  element("message-title").focus();
}

function refuse() {
  items = [];
  votes = new Map();
  busy = true;
  tell("");
  say("This link is not valid", "Please ask whoever sent it to you for a new one.");
}

// ---- judging

async function vote(choice) {
  if (busy || current == null) return;
  busy = true;
  const body = { choice, comment: element("comment").value.trim(), seconds: (performance.now() - shownAt) / 1000 };
  votes.delete(current); // so that it stands last
  votes.set(current, body);
  change("PUT", current, body);
  mark(choice);
  const next = open()[0];
  if (next !== undefined) load(next);
  await waiting(FADE_S);
  element("judging").classList.add("leaving");
  await waiting(FADE_S);
  show(next).catch(refuse);
}

function undo() {
  if (busy || !votes.size) return;
  busy = true;
  const [item, body] = [...votes].at(-1);
  change("DELETE", item);
  votes.delete(item);
  show(item, body.comment).catch(refuse);
}

function write(shown, focus = true) {
  element("comment-box").hidden = !shown;
  element("write").setAttribute("aria-expanded", String(shown));
  if (shown && focus) element("comment").focus();
}

const KEYS = {
  a: () => vote("left"),
  arrowleft: () => vote("left"),
  b: () => vote("right"),
  arrowright: () => vote("right"),
  t: () => vote("tie"),
  x: () => vote("bad"),
  u: undo,
  c: () => current != null && !busy && write(true),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.tagName === "TEXTAREA") {
    if (event.key === "Escape") element("prompt").focus();
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (act && !element("controls").hidden) {
    event.preventDefault();
    act();
  }
});
for (const button of document.querySelectorAll(".choice"))
  button.addEventListener("click", () => vote(button.dataset.choice));
element("undo").addEventListener("click", undo);
element("write").addEventListener("click", () => write(element("comment-box").hidden));
addEventListener("hashchange", () => location.reload());

async function start() {
  if (!token) return say("A link is missing", "Please open the link that you were sent, with all of its letters.");
  recall();
  const kept = [...unsaved];
  send();
  const study = await persist("api/study", () => say("One moment", "The server cannot be reached. Trying again…"));
  items = study.items;
  votes = new Map(study.votes.map(({ item, ...body }) => [item, body]));
  element("question").textContent = document.title = study.question;
  for (const { method, item, body } of kept) method === "PUT" ? votes.set(item, body) : votes.delete(item);
  await show(open()[0]);
}

start().catch(refuse);
