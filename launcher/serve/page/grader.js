// A grader as a form: what it shows is the wire form, and what is written changes it.
import { choose, make } from "./dom.js";

const ANSWER = "{{ sample.output_text }}";
const METRICS = ["fuzzy_match", "bleu", "gleu", "meteor", "cosine", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"];
const OPERATIONS = { eq: "equal", ne: "not equal", like: "the input has the reference in it", ilike: "the same, in upper or lower case" };
const ROLES = ["user", "system", "developer", "assistant"];
const SOURCE = `def grade(sample, item):
    """Any number for an answer; it runs in a sandbox."""
    return 1.0 if item["answer"] in sample["output_text"] else 0.0
`;

/** What graders of a type begin as. */
const FRESH = {
  string_check: () => ({ type: "string_check", name: "right", input: ANSWER, operation: "ilike", reference: "{{ item.answer }}" }),
  text_similarity: () => ({ type: "text_similarity", name: "near", input: ANSWER, reference: "{{ item.answer }}", evaluation_metric: "fuzzy_match" }),
  python: () => ({ type: "python", name: "code", source: SOURCE }),
  score_model: (judges) => ({ type: "score_model", name: "judge", model: judges[0] ?? "", input: [{ role: "user", content: `Question: {{ item.messages }}\n\nAnswer: ${ANSWER}\n\nHow good is the answer?` }], range: [0, 1] }),
  label_model: (judges) => ({ type: "label_model", name: "label", model: judges[0] ?? "", input: [{ role: "user", content: `Answer: ${ANSWER}\n\nIs it polite?` }], labels: ["polite", "rude"], passing_labels: ["polite"] }),
  multi: (judges) => ({ type: "multi", name: "all", graders: { right: FRESH.string_check(judges) }, calculate_output: "right" }),
};
const WORDS = { string_check: "a comparison of texts", text_similarity: "a similarity", python: "code", score_model: "a model gives a score", label_model: "a model gives a label", multi: "several, by a formula" };
const TOP = ["string_check", "text_similarity", "python", "score_model", "multi"];
const PARTS = ["string_check", "text_similarity", "python", "score_model", "label_model"];

/** Types of criteria of evals. */
export const CRITERIA = PARTS;
const RATED = ["text_similarity", "python", "score_model"];

export const first = () => FRESH.string_check([]);

/** What is wrong with a text that is to be a grader; "" if it can be sent. */
export function faultOf(text) {
  try {
    const found = JSON.parse(text);
    return found && typeof found === "object" && !Array.isArray(found) ? "" : "A grader is a JSON object.";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}

export const UNSHOWN = "No form can show this grader: change it as JSON.";

export class GraderForm {
  /** `changed` is told of everything that is written; `value` is the wire form, of one of `types`. */
  constructor(place, changed, types = TOP) {
    Object.assign(this, { place, changed, types, value: first(), judges: [] });
  }

  /** Whether the form can show the value: what people write as JSON has members of any type. */
  show(value, judges = this.judges) {
    const before = this.value;
    Object.assign(this, { value, judges });
    try {
      this.place.replaceChildren(...this.members(value, this.types, (type) => this.show(FRESH[type](this.judges))), ...this.threshold(value));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      this.value = before;
      return false;
    }
    return true;
  }

  /** From which score on a criterion passes. */
  threshold(own) {
    if (this.types !== CRITERIA || !RATED.includes(own.type)) return [];
    if (own.type === "text_similarity") own.pass_threshold ??= 0.8;
    const field = make("input", { type: "number", step: "any", inputMode: "decimal", value: own.pass_threshold ?? "", required: own.type === "text_similarity" });
    field.oninput = () => { field.value === "" ? delete own.pass_threshold : (own.pass_threshold = Number(field.value)); this.changed(); };
    return [make("label", {}, "Passes from", make("span", { className: "hint", textContent: "a score" }), field)];
  }

  again() {
    this.show(this.value);
    this.changed();
  }

  /** The fields of a grader; `turn` is told of another type. */
  members(own, types, turn) {
    const type = make("select");
    const known = types.includes(own.type) ? types : [own.type ?? "", ...types];
    choose(type, known.map((one) => [one, WORDS[one] ? `${one}: ${WORDS[one]}` : one]), own.type ?? "");
    type.onchange = () => { turn(type.value); this.changed(); };
    const rows = [make("label", {}, "Type", type)];
    if (own === this.value) rows.push(this.text(own, "name", "Name"));
    const build = { string_check: "compared", text_similarity: "similar", python: "code", score_model: "scored", label_model: "labelled", multi: "several" }[own.type];
    if (!build || !types.includes(own.type)) return [...rows, make("p", { className: "hint", textContent: "There is no form for this type: write it as JSON." })];
    return [...rows, ...this[build](own)];
  }

  text(own, name, title, hint = "", rows = 0) {
    const field = make(rows ? "textarea" : "input", { value: own[name] ?? "", spellcheck: false, autocomplete: "off", ...(rows ? { rows } : {}), className: rows ? "code" : "" });
    field.oninput = () => { own[name] = field.value; this.changed(); };
    return make("label", {}, title, hint && make("span", { className: "hint", textContent: hint }), field);
  }

  pick(own, name, title, options) {
    const field = make("select");
    const known = options.some(([value]) => value === own[name]) ? options : [[own[name] ?? "", own[name] || "choose one"], ...options];
    choose(field, known, own[name] ?? "");
    field.onchange = () => { own[name] = field.value; this.changed(); };
    return make("label", {}, title, field);
  }

  compared(own) {
    return [this.text(own, "input", "Input", `${ANSWER} is the answer`, 2), this.pick(own, "operation", "Operation", Object.entries(OPERATIONS).map(([name, said]) => [name, `${name}: ${said}`])),
      this.text(own, "reference", "Reference", "{{ item.FIELD }} is a field of the line", 2)];
  }

  similar(own) {
    return [this.text(own, "input", "Input", `${ANSWER} is the answer`, 2), this.text(own, "reference", "Reference", "{{ item.FIELD }} is a field of the line", 2), this.pick(own, "evaluation_metric", "Measure", METRICS.map((name) => [name]))];
  }

  code(own) {
    return [this.text(own, "source", "Source", "Python; grade(sample, item) returns a number", 10)];
  }

  scored(own) {
    own.range ??= [0, 1];
    const sampling = own.sampling_params ?? {};
    if (!Array.isArray(own.range) || typeof sampling !== "object") throw new TypeError(UNSHOWN);
    const number = (title, value, set, step = "any") => {
      const field = make("input", { type: "number", step, value: value ?? "", inputMode: "decimal" });
      field.oninput = () => { set(field.value === "" ? undefined : Number(field.value)); this.changed(); };
      return make("label", {}, title, field);
    };
    const sampled = (title, name) => number(title, sampling[name], (value) => {
      value === undefined ? delete sampling[name] : (sampling[name] = value);
      Object.keys(sampling).length ? (own.sampling_params = sampling) : delete own.sampling_params;
    });
    return [this.judge(own), ...this.messages(own),
      make("div", { className: "three" }, number("Lowest score", own.range[0], (value) => { own.range[0] = value ?? 0; }), number("Highest score", own.range[1], (value) => { own.range[1] = value ?? 1; })),
      make("details", {}, make("summary", { textContent: "Sampling" }), make("div", { className: "three" },
        sampled("Temperature", "temperature"), sampled("Top p", "top_p"), sampled("Most tokens", "max_completions_tokens"), sampled("Seed", "seed")))];
  }

  labelled(own) {
    const list = (name, title, hint) => {
      const field = make("input", { value: (own[name] ?? []).join(", "), spellcheck: false, autocomplete: "off" });
      field.oninput = () => { own[name] = field.value.split(",").map((one) => one.trim()).filter(Boolean); this.changed(); };
      return make("label", {}, title, make("span", { className: "hint", textContent: hint }), field);
    };
    return [this.judge(own), ...this.messages(own), list("labels", "Labels", "with commas between them"), list("passing_labels", "Labels that pass", "score 1, others 0")];
  }

  judge(own) {
    if (this.judges.length) return this.pick(own, "model", "Judge", this.judges.map((name) => [name]));
    return make("p", { className: "hint", textContent: "This site has no judges: whoever runs it names them in serve.yaml, under judges." });
  }

  messages(own) {
    if (!Array.isArray(own.input)) own.input = [{ role: "user", content: typeof own.input === "string" ? own.input : "" }];
    const rows = own.input.map((message, i) => {
      const isText = typeof message.content === "string";
      const title = own.input.length > 1 ? `Message ${i + 1}` : "Message to the judge";
      const text = isText ? this.text(message, "content", title, "with {{ item.FIELD }} and {{ sample.output_text }}", 4)
        : make("p", { className: "hint", textContent: `${title} is more than text: change it as JSON.` });
      const away = make("button", { type: "button", className: "quiet", textContent: "Remove", "aria-label": `Remove message ${i + 1}`, hidden: own.input.length < 2 });
      away.onclick = () => { own.input.splice(i, 1); this.again(); };
      return make("div", { className: "part form" }, make("div", { className: "head" }, this.pick(message, "role", "Role", ROLES.map((role) => [role])), away), text);
    });
    const more = make("button", { type: "button", textContent: "Add a message" });
    more.onclick = () => { own.input.push({ role: "user", content: "" }); this.again(); };
    return [...rows, make("div", { className: "actions" }, more)];
  }

  several(own) {
    const inner = own.graders ?? {};
    if (typeof inner.type === "string") own.graders = { [inner.name ?? "one"]: inner };
    const names = Object.keys(own.graders ?? {});
    const put = (pairs) => { own.graders = Object.fromEntries(pairs); };
    const parts = names.map((name, i) => {
      const part = own.graders[name];
      const field = make("input", { value: name, spellcheck: false, autocomplete: "off" });
      field.onchange = () => {
        const other = field.value.trim();
        if (!other || (other !== name && names.includes(other))) { field.value = name; return; }
        put(Object.entries(own.graders).map(([key, one]) => (key === name ? [other, { ...one, name: other }] : [key, one])));
        this.again();
      };
      const away = make("button", { type: "button", className: "quiet", textContent: "Remove", "aria-label": `Remove the grader ${name}`, hidden: names.length < 2 });
      away.onclick = () => { put(Object.entries(own.graders).filter(([key]) => key !== name)); this.again(); };
      const turn = (type) => { own.graders[name] = { ...FRESH[type](this.judges), name }; this.again(); };
      return make("fieldset", { className: "part form" }, make("legend", { textContent: `Grader ${i + 1}` }),
        make("div", { className: "head" }, make("label", {}, "Name", make("span", { className: "hint", textContent: "in the formula" }), field), away), ...this.members(part, PARTS, turn));
    });
    const more = make("button", { type: "button", textContent: "Add a grader" });
    more.onclick = () => {
      let n = names.length + 1;
      while (names.includes(`grader_${n}`)) n += 1;
      put([...Object.entries(own.graders ?? {}), [`grader_${n}`, { ...FRESH.string_check(this.judges), name: `grader_${n}` }]]);
      this.again();
    };
    return [...parts, make("div", { className: "actions" }, more), this.text(own, "calculate_output", "Formula", "names of graders, numbers, + - * / ^ and min max abs floor ceil exp sqrt log", 2)];
  }
}
