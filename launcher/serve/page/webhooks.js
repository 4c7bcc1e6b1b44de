// Webhooks: who is told of what, and what has come there.
import { all, fresh, get, now, post, remove } from "./server.js";
import { act, ago, badge, duration, element, forget, make, problem, renew, say, sure, when } from "./dom.js";

const MOST = 100; // deliveries that are shown
let change = () => {};
let again = () => {};
let edited = null; // the endpoint that the form changes; null: it makes one

export function begin(changed, shown) {
  change = changed;
  again = shown;
  element("hook-secret-done").onclick = () => secret(null);
  element("hook-secret-copy").onclick = () => navigator.clipboard?.writeText(element("hook-secret").textContent).then(() => say("The secret is copied."), () => say("The secret could not be copied."));
  element("hook-leave").onclick = () => edit(null);
}

export async function open() {
  forget(element("hooks"));
  secret(null);
  edit(null);
  element("no-hooks").hidden = true;
  element("hooks-loading").hidden = false;
  const events = await get("webhook_event_types");
  renew(element("hook-events"), events.data, () => events.data.map((name) => make("label", { className: "tick" }, make("input", { type: "checkbox", value: name, checked: true }), make("span", { textContent: name }))));
}

/** Show what the server knows; returns whether something goes on. */
export async function show(query, isCurrent) {
  const wanted = query.get("open");
  const [endpoints, deliveries] = await Promise.all([
    all("webhook_endpoints", MOST), wanted ? get(`webhook_endpoints/${encodeURIComponent(wanted)}/deliveries?limit=${MOST}`).catch((error) => { if (error.status !== 404) throw error; return null; }) : null, fresh("fine_tuning/overview?limit=1"),
  ]);
  if (!isCurrent()) return false;
  element("hooks-loading").hidden = true;
  element("no-hooks").hidden = endpoints.length > 0;
  const shown = deliveries ? wanted : null;
  const focused = element("hooks").contains(document.activeElement) ? document.activeElement.dataset.key : null;
  renew(element("hooks"), [endpoints, shown, deliveries?.data, Math.floor(now() / 5)], () => endpoints.map((one) => card(one, one.id === shown ? deliveries : null)));
  if (focused) element("hooks").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  return Boolean(deliveries?.data.some((one) => one.state === "pending"));
}

function card(one, deliveries) {
  const button = (key, text, does, name = "") => {
    const made = make("button", { type: "button", textContent: text, "data-key": `${key} ${one.id}`, "aria-label": `${text}: ${one.name}`, className: name });
    made.onclick = () => act(made, () => does(made));
    return made;
  };
  const toggle = button("list", "Deliveries", () => change({ open: deliveries ? null : one.id }));
  toggle.setAttribute("aria-expanded", String(Boolean(deliveries)));
  return make("section", { className: "card form", "aria-label": `Endpoint ${one.name}` },
    make("div", { className: "head" }, make("div", { className: "naming" }, make("h2", { textContent: one.name, dir: "auto" }), make("p", { className: "soft", textContent: one.url, dir: "auto" })),
      make("div", { className: "actions" }, toggle,
        button("test", "Send a test", () => test(one)), button("edit", "Change", () => edit(one)), button("rotate", "New secret", (at) => rotate(at, one)), button("delete", "Delete", (at) => away(at, one), "danger"))),
    make("p", { className: "labels" }, ...one.event_types.map((name) => make("span", { className: "label", textContent: name }))),
    make("p", { className: "hint", textContent: `Secret ${one.signing_secret_hint}, made ${ago(one.created_at)}` }),
    deliveries ? listed(deliveries) : null);
}

function listed(deliveries) {
  if (!deliveries.data.length) return make("p", { className: "soft", textContent: "Nothing was to be sent yet." });
  const heads = ["Event", "Of", "State", "Tries", "Last answer", "Next try", "Noted"];
  const cell = (label, content, properties = {}) => make("td", { role: "cell", "data-label": label, ...properties }, content);
  const rows = deliveries.data.map((one) => make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, make("span", { className: "long", textContent: one.event_type }), make("small", { textContent: one.id })),
    cell("Of", objectOf(one.data.id)), cell("State", badge(one.state)), cell("Tries", String(one.attempts)), cell("Last answer", one.last_answer ?? "–", { dir: "auto" }),
    cell("Next try", nextOf(one)), cell("Noted", ago(one.created_at), { title: when(one.created_at) })));
  return make("div", { className: "form" },
    make("table", { className: "list", role: "table", "aria-label": "Deliveries" },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads.map((textContent) => make("th", { scope: "col", role: "columnheader", textContent })))), make("tbody", { role: "rowgroup" }, ...rows)),
    deliveries.has_more ? make("p", { className: "hint", textContent: `The newest ${deliveries.data.length} are shown.` }) : null);
}

export function objectOf(id) {
  const view = { ftjob: "#jobs/", eval_: "#evals/", batch: "#batches" }[id?.slice(0, 5)];
  if (!view) return id ?? "–";
  return make("a", { href: view.endsWith("/") ? view + encodeURIComponent(id) : view, textContent: id });
}

function nextOf(one) {
  if (one.state !== "pending") return "–";
  if (one.next_attempt_at === null) return "under way";
  const left = one.next_attempt_at - now();
  return left > 1 ? `in ${duration(left)}` : "now";
}

// ---- what is done to endpoints

async function test(one) {
  problem("");
  const found = await post(`webhook_endpoints/${one.id}/test`, { event_type: one.event_types[0] });
  said(`${one.name} has answered ${found.status_code} to a test.`);
}

const said = (text) => { element("hook-said").textContent = text; };

async function rotate(button, one) {
  if (!sure(button, "Old one ends?")) return;
  secret(await post(`webhook_endpoints/${one.id}/rotate_secret`));
  await again();
}

async function away(button, one) {
  if (!sure(button, "Really delete?")) return;
  change({ open: null }, false); // its deliveries go with it
  await remove(`webhook_endpoints/${one.id}`);
  if (edited?.id === one.id) edit(null);
  said(`${one.name} is deleted.`);
  await again();
}

function secret(made) {
  element("hook-secret-card").hidden = !made;
  element("hook-secret").textContent = made?.signing_secret ?? "";
  if (made) element("hook-secret-title").focus();
}

function edit(one) {
  edited = one;
  element("hook-form-title").textContent = one ? `Change ${one.name}` : "New endpoint";
  element("hook-send").textContent = one ? "Save" : "Create";
  element("hook-leave").hidden = !one;
  element("hook-name").value = one?.name ?? "";
  element("hook-url").value = one?.url ?? "";
  for (const box of element("hook-events").querySelectorAll("input")) box.checked = one ? one.event_types.includes(box.value) : true;
  if (one) element("hook-name").focus();
}

export async function send() {
  const types = [...element("hook-events").querySelectorAll("input:checked")].map((box) => box.value);
  if (!types.length) throw new Error("Choose at least one event.");
  const asked = { name: element("hook-name").value, url: element("hook-url").value, event_types: types };
  const made = await post(edited ? `webhook_endpoints/${edited.id}` : "webhook_endpoints", asked);
  said(edited ? `${made.name} is changed.` : `${made.name} is made.`);
  if (!edited) secret(made);
  edit(null);
  await again();
}
