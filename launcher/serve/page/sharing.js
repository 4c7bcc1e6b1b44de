// Projects that may use a model: for admin keys, which are kept in no place but this variable, while the dialog is open.
import { all, post, remove, withKey } from "./server.js";
import { ago, element, make, say, sure, when } from "./dom.js";

let admin = "";
let model = "";
/** Whether the dialog still shows this model by this key. */
const steady = () => {
  const [key, name] = [admin, model];
  return () => key === admin && name === model;
};
const path = () => `fine_tuning/checkpoints/${encodeURIComponent(model)}/permissions`;

export function begin() {
  const dialog = element("sharing");
  element("sharing-close").onclick = close;
  dialog.onclose = () => { if (!dialog.open) forgetAll(); };
  dialog.onclick = (event) => { if (event.target === dialog) close(); };
  element("sharing-key-form").onsubmit = (event) => {
    event.preventDefault();
    admin = element("sharing-key").value.trim();
    element("sharing-key").value = "";
    list();
  };
  element("sharing-form").onsubmit = async (event) => {
    event.preventDefault();
    const ids = element("sharing-project").value.split(/[\s,]+/).filter(Boolean);
    await tried(async () => {
      await post(path(), { project_ids: ids }, withKey(admin));
      element("sharing-project").value = "";
      say("The project may use it.");
    });
  };
}

export const close = () => element("sharing").close();

function forgetAll() {
  admin = model = element("sharing-key").value = element("sharing-project").value = "";
  element("sharing-list").replaceChildren();
}

export function open(name) {
  forgetAll();
  model = name;
  element("sharing-model").textContent = name;
  told("");
  element("sharing").showModal();
  list();
}

function told(text) {
  element("sharing-problem").hidden = !text;
  element("sharing-problem").textContent = text;
}

async function tried(work) {
  told("");
  const isCurrent = steady();
  try {
    await work();
    if (isCurrent()) await list();
  } catch (error) {
    if (isCurrent()) refused(error);
  }
}

function refused(error) {
  if ([401, 403].includes(error.status)) admin = "";
  parts();
  told(error.status === 401 ? "This key is not valid." : error.message);
}

function parts() {
  element("sharing-key-form").hidden = Boolean(admin);
  element("sharing-form").hidden = !admin;
}

async function list() {
  parts();
  if (!admin) return;
  const isCurrent = steady();
  try {
    const found = await all(path(), 1000, withKey(admin));
    if (!isCurrent()) return;
    element("sharing-list").replaceChildren(...(found.length ? found.map(row) : [make("li", { className: "soft", textContent: "No other project yet." })]));
    told("");
  } catch (error) {
    if (isCurrent()) refused(error);
  }
}

function row(one) {
  const away = make("button", { type: "button", className: "danger", textContent: "Remove", "aria-label": `Remove ${one.project_id}` });
  away.onclick = () => sure(away, "Really?") && tried(() => remove(`${path()}/${encodeURIComponent(one.id)}`, withKey(admin)));
  return make("li", {}, make("span", { className: "naming", textContent: one.project_id }), make("span", { className: "soft", textContent: ago(one.created_at), title: when(one.created_at) }), away);
}
