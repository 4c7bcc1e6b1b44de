// The models that jobs have made; they can be deleted, unless a job needs them.
import { fresh, remove } from "./server.js";
import { ago, element, fail, forget, make, problem, renew, say, scored, short, sure, when } from "./dom.js";
import * as sharing from "./sharing.js";

let again = () => {};

export const begin = (shown) => { again = shown; };

export function open() {
  forget(element("models"));
  element("no-models").hidden = true;
  element("models-loading").hidden = false;
}

export async function show(isCurrent) {
  const { data } = await fresh("fine_tuning/models");
  if (!isCurrent()) return false;
  element("models-loading").hidden = true;
  element("no-models").hidden = data.length > 0;
  element("models-table").hidden = !data.length;
  renew(element("models"), data, () => data.map(row));
  // Rows stay what they are while ages grow: a button in them may have the focus.
  for (const [i, model] of data.entries()) element("models").children[i].querySelector(".born").textContent = ago(model.created_at);
  return data.some((model) => model.used_by.length);
}

function row(model) {
  const score = scored(model.metrics);
  const users = model.used_by.length;
  return make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader", "data-label": "Model" }, make("span", { className: "long", textContent: model.id }),
      users ? make("small", { className: "warned" }, `${users === 1 ? "A job starts" : `${users} jobs start`} from it: `, ...model.used_by.map((job) => (job.startsWith("ftjob-") ? make("a", { href: `#jobs/${job}`, textContent: job }) : job))) : null),
    make("td", { role: "cell", "data-label": "Kind", textContent: model.is_final ? "End of the job" : "Checkpoint" }),
    make("td", { role: "cell", "data-label": "Step", textContent: model.step }),
    make("td", { role: "cell", "data-label": "Loss or reward", textContent: score || "–" }),
    make("td", { role: "cell", "data-label": "Job" }, make("a", { href: `#jobs/${model.job}`, textContent: model.suffix || short(model.job), className: "clip", dir: "auto", title: model.job })),
    make("td", { role: "cell", className: "born", "data-label": "Created", title: when(model.created_at) }),
    make("td", { role: "cell", className: "last" }, make("div", { className: "deeds" }, make("a", { className: "button", href: `#try/${encodeURIComponent(model.id)}`, textContent: "Try", "aria-label": `Try ${model.id}` }), sharer(model), deleting(model, users))));
}

const sharer = (model) => make("button", { type: "button", textContent: "Share", "aria-label": `Projects that may use ${model.id}`, "aria-haspopup": "dialog", onclick: () => sharing.open(model.id) });

function deleting(model, users) {
  const button = make("button", { type: "button", className: "danger", textContent: "Delete", "aria-label": `Delete ${model.id}` });
  button.onclick = async () => {
    if (users) return problem(`${model.id} cannot be deleted: ${model.used_by.join(", ")} starts from it, which has to end first.`);
    if (!sure(button, "Really delete?")) return undefined;
    button.disabled = true;
    try {
      await remove(`models/${model.id.split("/").map(encodeURIComponent).join("/")}`);
      say("The model is deleted.");
    } catch (error) {
      fail(error);
      button.disabled = false;
    }
    return again();
  };
  return button;
}
