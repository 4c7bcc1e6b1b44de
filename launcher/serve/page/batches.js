// Batches: files of requests, and the files of their answers.
import { all, ask, get, now, post, upload } from "./server.js";
import { act, adopt, ago, badge, choose, duration, element, fileOption, forget, make, renew, sure, when } from "./dom.js";

const OPEN = ["validating", "in_progress", "finalizing", "cancelling"];
const MOST = 200;
let again = () => {};

export function begin(poll) {
  again = poll;
  element("batch-file").onchange = toggle;
}

export async function open() {
  forget(element("batch-list"));
  element("batches-loading").hidden = false;
  element("no-batches").hidden = true;
  const files = await get("files?purpose=batch&limit=200");
  choose(element("batch-file"), [["", "Upload a new file"], ...files.data.map(fileOption)]);
  toggle();
}

function toggle() {
  const isKnown = element("batch-file").value !== "";
  element("batch-new-place").hidden = isKnown;
  element("batch-new").disabled = isKnown;
  element("batch-send").textContent = isKnown ? "Start" : "Upload and start";
}

export async function show(isCurrent) {
  const found = await all("batches", MOST);
  if (!isCurrent()) return false;
  element("batches-loading").hidden = true;
  element("no-batches").hidden = found.length > 0;
  const focused = element("batch-list").contains(document.activeElement) ? document.activeElement.dataset.key : null;
  renew(element("batch-list"), [found, Math.floor(now() / 30)], () => found.map(card));
  if (focused) element("batch-list").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  return found.some((one) => OPEN.includes(one.status));
}

function card(one) {
  const { total, completed, failed } = one.request_counts;
  const isOpen = OPEN.includes(one.status);
  const files = [["output", "Answers", one.output_file_id], ["error", "Errors", one.error_file_id]].filter(([, , id]) => id).map(([kind, title, id]) => {
    const button = make("button", { type: "button", textContent: title, "data-key": `${kind} ${one.id}`, "aria-label": `Download ${title.toLowerCase()} of ${one.id}` });
    button.onclick = () => act(button, () => download(id, `${one.id}_${kind}.jsonl`));
    return button;
  });
  const cancel = make("button", { type: "button", className: "danger", textContent: "Cancel", "data-key": `cancel ${one.id}`, "aria-label": `Cancel ${one.id}` });
  cancel.onclick = () => act(cancel, async () => { if (sure(cancel, "Really cancel?")) { await post(`batches/${one.id}/cancel`); await again(); } });
  const bar = make("span", { className: "progress", role: "progressbar", "aria-label": "Requests", "aria-valuemin": 0, "aria-valuemax": total || 1, "aria-valuenow": completed + failed }, make("i"));
  bar.firstChild.style.transform = `scaleX(${total ? (completed + failed) / total : 0})`;
  const told = [total ? `${completed} of ${total} answered` : isOpen ? "Its requests are read" : "No request was answered", failed && `${failed} failed`, one.model, one.usage && `${(one.usage.total_tokens).toLocaleString()} tokens`,
    isOpen && one.expires_at > now() && `expires in ${duration(one.expires_at - now())}`].filter(Boolean).join(" · ");
  return make("section", { className: "card form", "aria-label": `Batch ${one.id}` },
    make("div", { className: "head" }, make("div", { className: "naming" }, make("h2", { textContent: one.metadata?.name ?? one.id, dir: "auto" }), make("p", { className: "soft", textContent: `${one.endpoint} · ${ago(one.created_at)}`, title: when(one.created_at) })),
      make("div", { className: "actions" }, ...files, ["validating", "in_progress"].includes(one.status) ? cancel : null)),
    make("p", { className: "labels" }, badge(one.status), make("span", { textContent: told })), isOpen ? bar : null,
    one.errors ? make("ul", { className: "plain bad" }, ...one.errors.data.map((fault) => make("li", { textContent: `${fault.line === null ? "" : `Line ${fault.line}: `}${fault.message}`, dir: "auto" }))) : null);
}

/** A file of the service as one of this device. */
async function download(id, name) {
  const url = URL.createObjectURL(await (await ask(`files/${id}/content`)).blob());
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

export async function send() {
  const bar = element("batch-progress");
  try {
    let id = element("batch-file").value;
    if (!id) {
      bar.hidden = false;
      const made = await upload(element("batch-new").files[0], (share) => { bar.value = share; }, "batch");
      adopt(element("batch-file"), made);
      id = made.id;
    }
    const name = element("batch-name").value.trim();
    await post("batches", { input_file_id: id, endpoint: element("batch-endpoint").value, completion_window: "24h", metadata: name ? { name } : null });
    element("batch-form").reset();
    toggle();
    await again();
  } finally {
    bar.hidden = true;
  }
}
