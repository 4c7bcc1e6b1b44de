// Who has changed what in the project.
import { fresh, now } from "./server.js";
import { ago, element, forget, make, renew, when } from "./dom.js";
import { objectOf } from "./webhooks.js";

const PAGE = 50;
const MOST = 500;
let change = () => {};
const VERBS = { POST: "Create", DELETE: "Delete", PUT: "Change", PATCH: "Change" };
const THINGS = [
  [/^POST .*\/(cancel|pause|resume|complete|test|rotate_secret)$/, (found) => ({ rotate_secret: "New secret", test: "Send a test" })[found[1]] ?? `${found[1][0].toUpperCase()}${found[1].slice(1)}`],
  [/^POST .*\/(?:webhook_endpoints|evals)\/\{[^/]*\}$/, () => "Change"],
];
const NOUNS = [
  [/\/permissions/, "permission"], [/\/jobs/, "job"], [/\/files/, "file"], [/\/parts$/, "part of an upload"], [/\/uploads/, "upload"], [/\/models/, "model"],
  [/webhook_endpoints/, "webhook endpoint"], [/\/batches/, "batch"], [/\/runs/, "run of an eval"], [/\/evals/, "eval"],
];

export const begin = (changed) => { change = changed; };

export function open() {
  forget(element("audit-list"));
  element("no-audit").hidden = true;
  element("audit-loading").hidden = false;
}

/** A request in words. */
function told(action) {
  if (action.startsWith("keys ")) return `Key: ${action.slice(5)}`;
  const [method] = action.split(" ");
  const special = THINGS.find(([form]) => form.test(action));
  const verb = special ? special[1](action.match(special[0])) : VERBS[method] ?? method;
  const noun = NOUNS.find(([form]) => form.test(action))?.[1] ?? "";
  return noun ? `${verb}: ${noun}` : verb;
}

export async function show(query, isCurrent) {
  const pages = Math.max(1, Number(query.get("more")) || 1);
  const found = await fresh(`fine_tuning/audit?limit=${Math.min(MOST, pages * PAGE)}`);
  if (!isCurrent()) return false;
  element("audit-loading").hidden = true;
  element("no-audit").hidden = found.data.length > 0;
  element("audit-table").hidden = !found.data.length;
  element("audit-more").hidden = !found.has_more || pages * PAGE >= MOST;
  element("audit-more").onclick = () => change({ more: pages + 1 }, false);
  renew(element("audit-list"), [found.data, Math.floor(now() / 60)], () => found.data.map(row));
  return false;
}

function row(one) {
  const isDone = one.status < 400;
  const by = one.key ?? (one.key_id === "key_demo" ? "demo key" : one.key_id ?? "the site");
  return make("tr", { role: "row" },
    make("td", { role: "cell", "data-label": "When", title: when(one.time), textContent: ago(one.time) }),
    make("th", { scope: "row", role: "rowheader" }, make("span", { className: "long", textContent: told(one.action) }), make("small", { textContent: one.action, dir: "auto" })),
    make("td", { role: "cell", "data-label": "What", dir: "auto" }, ...one.object.split(" ").flatMap((id, i) => [i ? " " : "", objectOf(id || "–")])),
    make("td", { role: "cell", "data-label": "Key" }, make("span", { textContent: by, dir: "auto" }), one.is_own_key ? make("small", { textContent: "this one" }) : null),
    make("td", { role: "cell", "data-label": "Answer", className: isDone ? "" : "bad", textContent: isDone ? "done" : `refused, ${one.status}` }));
}
