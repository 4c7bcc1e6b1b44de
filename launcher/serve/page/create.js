// A new job, of files that are uploaded now or have been before.
import { get, post, upload } from "./server.js";
import { adopt, choose, element, fileOption } from "./dom.js";
import { faultOf } from "./grader.js";
import { draft, keep, offer, take, turn } from "./graders.js";

const EXAMPLES = { supervised: "conversation", dpo: "pair of answers", reinforcement: "question" };
/** Hyperparameters of one method alone: field → name. */
const OPTIONS = { dpo: { beta: "beta" }, reinforcement: { compute: "compute_multiplier", interval: "eval_interval", samples: "eval_samples" } };

export async function open(query) {
  const [models, files] = await Promise.all([get("models"), get("files?purpose=fine-tune&limit=200"), take(query)]);
  display();
  const names = models.data.map((model) => model.id).filter((name) => !name.includes(":ckpt-step-"));
  choose(element("new-model"), names.map((name) => [name]), query.get("model") ?? undefined);
  const known = files.data.map(fileOption);
  choose(element("new-train-known"), [["", "Upload a new file"], ...known], query.get("file") ?? undefined);
  choose(element("new-valid-known"), [["", "Upload a new file, or none"], ...known]);
  if (query.get("method")) element("new-method").value = query.get("method");
  toggle();
}

function display() {
  element("new-grader").value = draft();
  element("new-grader").setCustomValidity(draft() && faultOf(draft()));
  offer(element("new-grader-other"));
}

function toggle() {
  const method = element("new-method").value;
  for (const place of document.querySelectorAll("#new-form [data-method]")) place.hidden = place.dataset.method !== method;
  element("new-grader").required = method === "reinforcement";
  element("new-example").textContent = EXAMPLES[method];
  for (const name of ["train", "valid"]) {
    const isKnown = element(`new-${name}-known`).value !== "";
    element(`new-${name}`).disabled = isKnown;
    element(`new-${name}-place`).hidden = isKnown;
  }
  const sends = ["train", "valid"].some((name) => !element(`new-${name}-known`).value && element(`new-${name}`).files.length);
  element("new-send").textContent = element("new-train-known").value && !sends ? "Start" : "Upload and start";
}

export function begin() {
  element("new-method").onchange = toggle;
  element("new-grader-other").onclick = () => { turn(); display(); };
  element("new-grader").oninput = () => { keep(element("new-grader").value); element("new-grader").setCustomValidity(faultOf(element("new-grader").value)); };
  for (const name of ["train", "valid"]) element(`new-${name}-known`).onchange = element(`new-${name}`).onchange = toggle;
}

export async function send() {
  const bar = element("new-progress");
  const auto = (id) => (element(id).value === "" ? "auto" : Number(element(id).value));
  const idOf = async (name) => {
    const file = element(`new-${name}`).files[0];
    if (element(`new-${name}-known`).value) return element(`new-${name}-known`).value;
    if (!file) return null;
    bar.hidden = false;
    bar.value = 0;
    const made = await upload(file, (share) => { bar.value = share; });
    adopt(element(`new-${name}-known`), made);
    return made.id;
  };
  try {
    const method = element("new-method").value;
    const own = {};
    if (method === "reinforcement") {
      const fault = faultOf(element("new-grader").value);
      if (fault) throw new Error(fault);
      own.grader = JSON.parse(element("new-grader").value);
      // Before a file is sent: what is wrong with a grader is known at once.
      await post("fine_tuning/alpha/graders/validate", own);
    }
    const training = await idOf("train");
    const validation = await idOf("valid");
    const hyperparameters = { n_epochs: auto("new-epochs"), batch_size: auto("new-batch"), learning_rate_multiplier: auto("new-rate") };
    for (const [field, name] of Object.entries(OPTIONS[method] ?? {})) hyperparameters[name] = auto(`new-${field}`);
    if (method === "reinforcement") hyperparameters.reasoning_effort = element("new-effort").value;
    const labels = element("new-labels").value.split(/[,\n]/).map((one) => one.trim()).filter(Boolean);
    const metadata = labels.length ? Object.fromEntries(labels.map((one) => [one.split("=")[0].trim(), one.split("=").slice(1).join("=").trim()])) : null;
    const job = await post("fine_tuning/jobs", {
      model: element("new-model").value, training_file: training, validation_file: validation, metadata,
      suffix: element("new-suffix").value || null, seed: element("new-seed").value === "" ? null : Number(element("new-seed").value),
      method: { type: method, [method]: { ...own, hyperparameters } },
    });
    element("new-form").reset();
    toggle();
    location.hash = `#jobs/${job.id}`;
  } finally {
    bar.hidden = true;
  }
}
