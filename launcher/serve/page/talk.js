// Trying models: one, or a tuned one beside its base.
import { ask, get, streamed } from "./server.js";
import { choose, element, fail, make, problem } from "./dom.js";

let talks = []; // of each column: its model and its turns
let answering = null;

const baseOf = (name) => (name.startsWith("ft:") ? name.split(":")[1] : "");

export async function open(wanted) {
  const models = (await get("models")).data.map((model) => model.id);
  const tuned = models.filter((name) => name.startsWith("ft:"));
  const others = models.filter((name) => !name.startsWith("ft:"));
  choose(element("try-model"), [...tuned, ...others].map((name) => [name]), wanted || undefined);
  choose(element("try-beside"), [["", "no other model"], ...[...others, ...tuned].map((name) => [name])]);
  suggest();
  columns();
}

// What a tuned model is compared with first is what it was made of.
function suggest() {
  const base = baseOf(element("try-model").value);
  element("try-beside").value = [...element("try-beside").options].some((option) => option.value === base) ? base : "";
}

function columns() {
  const names = [element("try-model").value, element("try-beside").value].filter(Boolean);
  if (talks.length === names.length && talks.every(({ model }, i) => model === names[i])) return;
  reset(names);
}

export function reset(names = talks.map(({ model }) => model)) {
  answering?.abort();
  element("talk").classList.toggle("two", names.length > 1);
  talks = names.map((model) => {
    const place = make("div", { className: "turns", role: "log", "aria-live": "polite", "aria-label": `Conversation with ${model}` });
    return { model, place, turns: [] };
  });
  element("talk").replaceChildren(...talks.map(({ model, place }) => make("section", {}, make("h2", { textContent: model, title: model }), place)));
}

function turn(place, role, text) {
  const made = make("div", { className: `turn ${role}`, textContent: text, dir: "auto" });
  place.append(made);
  return made;
}

export async function send() {
  const text = element("try-text").value.trim();
  if (!text || answering) return;
  columns();
  element("try-text").value = "";
  answering = new AbortController();
  busy(true);
  problem("");
  await Promise.all(talks.map((talk) => answer(talk, text, answering.signal).catch(fail)));
  answering = null;
  busy(false);
}

async function answer(talk, text, signal) {
  const system = element("try-system").value.trim();
  const asked = [...talk.turns, { role: "user", content: text }];
  turn(talk.place, "user", text);
  const place = turn(talk.place, "assistant", "…");
  let said = "";
  try {
    const body = {
      model: talk.model, messages: [...(system ? [{ role: "system", content: system }] : []), ...asked], stream: true,
      temperature: Number(element("try-temperature").value), max_tokens: Number(element("try-longest").value),
    };
    const response = await ask("chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    for await (const event of streamed(response.body)) {
      if (event.error) throw new Error(event.error.message);
      said += event.choices[0]?.delta?.content ?? "";
      place.textContent = said || "…";
    }
  } finally {
    if (said) talk.turns = [...asked, { role: "assistant", content: said }];
    place.textContent = said || "(no answer)";
  }
}

function busy(is) {
  element("try-send").disabled = is;
  element("try-stop").hidden = !is;
}

export function begin() {
  element("try-model").onchange = () => { suggest(); columns(); };
  element("try-beside").onchange = columns;
  element("try-stop").onclick = () => answering?.abort();
  element("try-reset").onclick = () => { reset(); element("try-text").focus(); };
  element("try-text").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); element("try-form").requestSubmit(); }
  };
}
