// A new job, of files that are uploaded now or have been before.
import { get, post, upload } from "./server.js";
import { ago, choose, element, size } from "./dom.js";

export async function open(query) {
  const [models, files] = await Promise.all([get("models"), get("files?purpose=fine-tune&limit=200")]);
  const names = models.data.map((model) => model.id).filter((name) => !name.includes(":ckpt-step-"));
  choose(element("new-model"), names.map((name) => [name]), query.get("model") ?? undefined);
  const known = files.data.map((file) => [file.id, `${file.filename} · ${size(file.bytes)} · ${ago(file.created_at)}`]);
  choose(element("new-train-known"), [["", "Upload a new file"], ...known], query.get("file") ?? undefined);
  choose(element("new-valid-known"), [["", "Upload a new file, or none"], ...known]);
  if (query.get("method")) element("new-method").value = query.get("method");
  toggle();
}

function toggle() {
  const isPreference = element("new-method").value === "dpo";
  element("new-beta-place").hidden = !isPreference;
  element("new-example").textContent = isPreference ? "pair of answers" : "conversation";
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
    return (await upload(file, (share) => { bar.value = share; })).id;
  };
  try {
    const training = await idOf("train");
    const validation = await idOf("valid");
    const hyperparameters = { n_epochs: auto("new-epochs"), batch_size: auto("new-batch"), learning_rate_multiplier: auto("new-rate") };
    const method = element("new-method").value;
    if (method === "dpo") hyperparameters.beta = auto("new-beta");
    const labels = element("new-labels").value.split(/[,\n]/).map((one) => one.trim()).filter(Boolean);
    const metadata = labels.length ? Object.fromEntries(labels.map((one) => [one.split("=")[0].trim(), one.split("=").slice(1).join("=").trim()])) : null;
    const job = await post("fine_tuning/jobs", {
      model: element("new-model").value, training_file: training, validation_file: validation, metadata,
      suffix: element("new-suffix").value || null, seed: element("new-seed").value === "" ? null : Number(element("new-seed").value),
      method: { type: method, [method]: { hyperparameters } },
    });
    element("new-form").reset();
    toggle();
    location.hash = `#jobs/${job.id}`;
  } finally {
    bar.hidden = true;
  }
}
