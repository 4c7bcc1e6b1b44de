// Talking to the server. The key is in this tab's storage alone.
const SHELF = "launcher-serve-key";
const OWNER = "launcher-serve-project"; // whose drafts this tab has
const KEPT = 24; // answers that are remembered, to be asked for again only if they have changed
const kept = new Map();
let left = new AbortController(); // of what is asked with a key: its answers do not come after it

export const session = {
  key: "",
  project: "",
  ahead: 0, // seconds by which the server's clock is before this device's
  owner: "",
  recall() {
    try { [this.key, this.owner] = [SHELF, OWNER].map((name) => sessionStorage.getItem(name) ?? ""); } catch { /* asked for each time */ }
  },
  /** The tab has what this project writes. */
  own() {
    this.owner = this.project;
    try { sessionStorage.setItem(OWNER, this.owner); } catch { /* it stays in memory */ }
  },
  /** Leave nothing of a project in the tab's storage. */
  clear() {
    try { for (const name of Object.keys(sessionStorage)) if (name.startsWith("launcher-serve-")) sessionStorage.removeItem(name); } catch { /* there is none */ }
  },
  keep(key) {
    this.key = key;
    this.project = "";
    kept.clear();
    left.abort();
    left = new AbortController();
    try { key ? sessionStorage.setItem(SHELF, key) : sessionStorage.removeItem(SHELF); } catch { /* it stays in memory */ }
  },
};

/** Seconds since 1970 by the server's clock. */
export const now = () => Date.now() / 1000 + session.ahead;

const lost = () => new Error("The server cannot be reached. Trying again…");

export async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${session.key}`, ...options.headers };
  if (typeof options.body === "string") headers["Content-Type"] = "application/json";
  const signal = options.signal ? AbortSignal.any([options.signal, left.signal]) : left.signal;
  const response = await fetch(`v1/${path}`, { cache: "no-store", ...options, headers, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : lost();
  });
  if (!response.ok && response.status !== 304) {
    const found = await response.json().catch(() => null);
    const after = Number(response.headers.get("Retry-After")) || 0;
    throw Object.assign(new Error(found?.error?.message ?? `The server answered ${response.status}.`), { status: response.status, param: found?.error?.param ?? "", after });
  }
  return response;
}

/** Options of a request with another key than the tab's. */
export const withKey = (key) => ({ headers: { Authorization: `Bearer ${key}` } });
export const get = async (path, options) => (await ask(path, options)).json();
export const post = async (path, body, options) => (await ask(path, { ...options, method: "POST", body: body && JSON.stringify(body) })).json();
export const remove = async (path, options) => (await ask(path, { ...options, method: "DELETE" })).json();

/** What the page reads again and again: the same object as before while nothing has changed. */
export async function fresh(path) {
  const before = kept.get(path);
  const key = session.key;
  const response = await ask(path, before ? { headers: { "If-None-Match": before.tag } } : {});
  // Here and now: a device's clock may be wrong, and may be set while the page is open.
  const at = Number(response.headers.get("X-Now"));
  if (at) session.ahead = at - Date.now() / 1000;
  if (response.status === 304) return before.body;
  const body = await response.json();
  session.project = body.project ?? session.project;
  if (key === session.key) {
    kept.delete(path);
    kept.set(path, { tag: response.headers.get("ETag"), body });
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return body;
}

/** All items of a list that has pages, up to `most`. */
export async function all(path, most, options, query = "") {
  const found = [];
  for (let more = true; more && found.length < most; ) {
    const after = found.length ? `&after=${encodeURIComponent(found.at(-1).id)}` : "";
    const page = await get(`${path}?limit=${Math.min(100, most - found.length)}${after}${query}`, options);
    found.push(...page.data);
    more = page.has_more && page.data.length > 0;
  }
  return found;
}

/** The first lines of a stream that say something; reads no more of it than it needs. */
export async function firstLines(stream, most) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  const found = [];
  let rest = "";
  for (let isOver = false; !isOver && found.length < most; ) {
    const part = await reader.read();
    isOver = part.done;
    const lines = (rest + (part.value ?? "")).split("\n");
    rest = isOver ? "" : lines.pop();
    found.push(...lines.filter((line) => line.trim()));
  }
  await reader.cancel().catch(() => {});
  return found.slice(0, most);
}

/** Send a file; `tell` is given the share that is sent. */
// XMLHttpRequest, since fetch does not tell how far an upload is.
export function upload(file, tell, purpose = "fine-tune") {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("purpose", purpose);
    form.append("file", file);
    request.open("POST", "v1/files");
    request.setRequestHeader("Authorization", `Bearer ${session.key}`);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && tell(event.loaded / event.total);
    left.signal.addEventListener("abort", () => request.abort());
    request.onabort = () => failed(new DOMException("", "AbortError"));
    request.onerror = () => failed(new Error("The server cannot be reached."));
    request.onload = () => (request.status === 200 ? done(request.response)
      : failed(Object.assign(new Error(request.response?.error?.message ?? "The upload failed."), { status: request.status })));
    request.send(form);
  });
}

/** The events of an answer that comes in pieces. */
export async function* streamed(body) {
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
