// A chart of lines over steps: round ticks, one unit an axis, logarithmic if wanted, a zoom.
import { draw, make, number } from "./dom.js";

/** What can be drawn: column of a training and of a validation point, and its unit. */
export const METRICS = {
  loss: { title: "Loss", unit: "Loss, nats per token", train: 1, valid: 1, format: number, canLog: true },
  accuracy: { title: "Accuracy", unit: "Accuracy, %", train: 2, valid: 2, factor: 100, format: (value) => `${number(value)} %` },
  rate: { title: "Learning rate", unit: "Learning rate", train: 3, format: number, canLog: true },
  reward: { title: "Reward", unit: "Mean reward", train: 4, valid: 3, format: number },
  errors: { title: "Grader errors", unit: "Answers whose grading went wrong, %", train: 5, factor: 100, format: (value) => `${number(value)} %` },
};

/** What there is to draw of jobs of these methods, the most telling first. */
export function metricsOf(methods) {
  const rewarded = methods.includes("reinforcement");
  const others = methods.some((method) => method !== "reinforcement");
  return [...(rewarded && !others ? ["reward", "loss"] : ["loss"]), ...(others ? ["accuracy"] : []), "rate", ...(rewarded && others ? ["reward"] : []), ...(rewarded ? ["errors"] : [])];
}

/** Points of a curve as the server tells it, for a metric. */
export function linesOf(curve, metric, names) {
  const { train, valid, factor = 1 } = METRICS[metric];
  const line = (points, column) => points.filter((p) => typeof p[column] === "number").map((p) => [p[0], p[column] * factor]);
  return [
    { ...names.train, points: line(curve.train, train) },
    { ...names.valid, points: valid ? line(curve.valid, valid) : [] },
  ].filter(({ points }) => points.length);
}

/** Add what a server told of new steps to what was known. */
export function joined(known, more) {
  if (!known || known.version !== more.version) return more;
  const both = (kind) => [...known[kind].filter((p) => !more[kind].length || p[0] < more[kind][0][0]), ...more[kind]];
  return { ...more, train: both("train"), valid: both("valid"), is_thinned: known.is_thinned || more.is_thinned };
}

function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let at = Math.floor(low / step + 1e-9); at * step < high + step * 0.999; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function powers(low, high) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of high / low > 300 ? [1] : [1, 2, 5]) all.push(Number((factor * 10 ** power).toPrecision(6)));
  }
  const [first, last] = [all.findLastIndex((t) => t <= low), all.findIndex((t) => t >= high)];
  return all.slice(Math.max(first, 0), (last < 0 ? all.length : last) + 1);
}

const HINT = "Arrow keys read values, plus and minus zoom, zero shows all.";

export class Chart {
  /** `zoomed` is told the range of steps that somebody has chosen, null for all. */
  constructor(place, zoomed) {
    this.place = place;
    this.zoomed = zoomed;
    this.tip = make("div", { className: "tip", hidden: true });
    this.read = make("p", { className: "spoken", "aria-live": "polite" });
    this.frame = make("div", { className: "frame", tabIndex: 0, role: "group", "aria-label": `Chart. ${HINT}` });
    this.empty = make("p", { className: "soft" });
    this.shown = null;
    this.at = null;
    this.frame.onkeydown = (event) => this.key(event);
    this.frame.onblur = () => this.leave();
    new ResizeObserver(() => this.shown && this.draw(this.shown)).observe(place);
  }

  clear(text) {
    this.shown = null;
    this.signature = "";
    this.empty.textContent = text;
    this.place.replaceChildren(this.empty);
  }

  /** `lines`: name, index of a colour, mark, isValid, points; `metric`, `log`, `zoom` of steps or null. */
  draw(wanted) {
    this.shown = wanted;
    const width = Math.max(this.place.clientWidth, 260);
    const signature = JSON.stringify([width, wanted.metric, wanted.log, wanted.zoom, wanted.lines.map((l) => [l.name, l.points.length, l.points[0], l.points.at(-1)])]);
    if (this.signature === signature && this.frame.isConnected) return;
    this.signature = signature;
    const metric = METRICS[wanted.metric];
    const log = wanted.log && metric.canLog;
    const [from, to] = wanted.zoom ?? [-Infinity, Infinity];
    this.lines = wanted.lines.map((line) => ({ ...line, points: line.points.filter(([x, y]) => x >= from && x <= to && (!log || y > 0)) })).filter((l) => l.points.length);
    const points = this.lines.flatMap((line) => line.points);
    if (!points.length) return this.clear(wanted.zoom ? "Nothing was measured in this range." : "Nothing yet: the curve begins with the first step.");
    const height = Math.round(Math.min(320, Math.max(220, 0.5 * width)));
    let [low, high] = [Infinity, -Infinity];
    for (const [, y] of points) { low = Math.min(low, y); high = Math.max(high, y); }
    if (!log && low > 0 && low < high / 2) low = 0; // else all would look like a fall to nothing
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
    const rungs = log ? powers(low, high) : ticks(low, high, height / 70);
    const texts = rungs.map((rung) => metric.format(rung).replace(" %", ""));
    const [left, right, top, bottom] = [12 + 7 * Math.max(...texts.map((text) => text.length)), width - 18, 28, height - 40];
    const [first, last] = [Math.min(...this.lines.map((l) => l.points[0][0])), Math.max(...this.lines.map((l) => l.points.at(-1)[0]))];
    const f = log ? Math.log10 : (value) => value;
    this.x = (step) => (last === first ? (left + right) / 2 : left + ((step - first) / (last - first)) * (right - left));
    this.y = (value) => bottom - ((f(value) - f(rungs[0])) / (f(rungs.at(-1)) - f(rungs[0]))) * (bottom - top);
    this.step = (x) => first + ((x - left) / (right - left)) * (last - first);
    Object.assign(this, { metric, left, right, top, bottom, width, height, first, last });
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.told() });
    svg.append(draw("text", { x: 4, y: 14, class: "unit" }, metric.unit + (log ? ", logarithmic" : "")));
    rungs.forEach((rung, i) => {
      svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: this.y(rung), y2: this.y(rung) }));
      svg.append(draw("text", { x: left - 8, y: this.y(rung) + 4, "text-anchor": "end" }, texts[i]));
    });
    for (const tick of ticks(first, last, width / 110).filter((t) => Number.isInteger(t) && t >= first && t <= last)) {
      svg.append(draw("text", { x: this.x(tick), y: bottom + 18, "text-anchor": "middle" }, String(tick)));
      svg.append(draw("line", { class: "grid", x1: this.x(tick), x2: this.x(tick), y1: bottom, y2: bottom + 4 }));
    }
    svg.append(draw("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle", class: "unit" }, "Step"));
    const ends = [];
    for (const line of this.lines) {
      const placed = line.points.map(([step, value]) => [this.x(step), this.y(value)]);
      const style = `c${line.index}${line.isValid ? " valid" : ""}`;
      svg.append(draw("polyline", { class: `line ${style}`, points: placed.map((p) => p.map((v) => v.toFixed(1))).join(" ") }));
      if (placed.length === 1 || (line.isValid && placed.length < 40)) for (const [cx, cy] of placed) svg.append(draw("circle", { class: `dot ${style}`, cx, cy, r: 3.5 }));
      if (line.mark) ends.push([...placed.at(-1), line.mark, style]);
    }
    ends.sort((a, b) => a[1] - b[1]);
    for (const [i, end] of ends.entries()) { // marks that end together stand below each other
      for (const other of ends.slice(0, i)) if (Math.abs(end[0] - other[0]) < 14 && end[1] - other[1] < 13) end[1] = other[1] + 13;
    }
    for (const [x, y, mark, style] of ends) svg.append(draw("text", { x: x + 5, y: y + 4, class: `mark ${style}` }, mark));
    this.cursor = draw("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    this.range = draw("rect", { class: "range", y: top, height: bottom - top, visibility: "hidden" });
    svg.append(this.range, this.cursor);
    this.listen(svg);
    this.frame.replaceChildren(svg, this.tip);
    if (!this.frame.isConnected) this.place.replaceChildren(this.frame, this.read);
    if (this.at !== null) this.point(this.at);
  }

  told() {
    const said = this.lines.map((line) => {
      const [a, b] = [line.points[0], line.points.at(-1)];
      return `${line.name} from ${this.metric.format(a[1])} at step ${a[0]} to ${this.metric.format(b[1])} at step ${b[0]}`;
    });
    return `${this.metric.title}: ${said.join("; ")}`;
  }

  listen(svg) {
    const at = (event) => ((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth) * this.width;
    let start = null;
    svg.onpointerdown = (event) => {
      if (event.button) return;
      start = at(event);
      svg.setPointerCapture(event.pointerId);
    };
    svg.onpointermove = (event) => {
      this.point(this.step(at(event)));
      if (start === null) return;
      const [a, b] = [Math.max(this.left, Math.min(start, at(event))), Math.min(this.right, Math.max(start, at(event)))];
      this.range.setAttribute("x", a);
      this.range.setAttribute("width", Math.max(0, b - a));
      this.range.setAttribute("visibility", b - a > 8 ? "visible" : "hidden");
    };
    svg.onpointerup = (event) => {
      const [from, to] = [start, at(event)];
      start = null;
      this.range.setAttribute("visibility", "hidden");
      if (from !== null && Math.abs(to - from) > 8) this.zoom(this.step(Math.min(from, to)), this.step(Math.max(from, to)));
    };
    svg.onpointercancel = () => { start = null; this.range.setAttribute("visibility", "hidden"); };
    svg.onpointerleave = () => start === null && this.leave();
    svg.ondblclick = () => this.zoomed(null);
  }

  zoom(from, to) {
    const range = [Math.max(0, Math.round(from)), Math.round(to)];
    if (range[1] > range[0]) this.zoomed(range);
  }

  key(event) {
    if (!this.lines?.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = this.lines.reduce((best, line) => (line.points.length > best.length ? line.points : best), []).map((p) => p[0]);
    const middle = this.at ?? this.first;
    let here = all.findIndex((step) => step >= middle);
    if (here < 0) here = all.length - 1;
    const span = (this.last - this.first) / 4;
    if (event.key === "ArrowRight") this.point(all[Math.min(all.length - 1, this.at === null ? 0 : here + 1)], true);
    else if (event.key === "ArrowLeft") this.point(all[this.at === null ? all.length - 1 : Math.max(0, here - 1)], true);
    else if (event.key === "Home") this.point(all[0], true);
    else if (event.key === "End") this.point(all.at(-1), true);
    else if (event.key === "+" || event.key === "=") this.zoom(middle - span, middle + span);
    else if (event.key === "-") this.zoomed(this.shown.zoom && [Math.max(0, Math.round(this.first - 2 * span)), Math.round(this.last + 2 * span)]);
    else if (event.key === "0") this.zoomed(null);
    else if (event.key === "Escape") this.leave();
    else return;
    event.preventDefault();
  }

  /** Show the values nearest to a step. */
  point(step, aloud = false) {
    const near = (points) => {
      let [low, high] = [0, points.length - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        points[middle][0] < step ? (low = middle + 1) : (high = middle);
      }
      return low && Math.abs(points[low - 1][0] - step) < Math.abs(points[low][0] - step) ? points[low - 1] : points[low];
    };
    const found = this.lines.map((line) => [line, near(line.points)]);
    const nearest = found.reduce((best, [, p]) => (Math.abs(p[0] - step) < Math.abs(best - step) ? p[0] : best), found[0][1][0]);
    this.at = nearest;
    for (const side of ["x1", "x2"]) this.cursor.setAttribute(side, this.x(nearest));
    this.cursor.setAttribute("visibility", "visible");
    // A validation is rarer than steps: it is told where it was made.
    const told = found.filter(([line, p]) => !line.isValid || Math.abs(this.x(p[0]) - this.x(nearest)) < 5);
    const text = (line, p) => `${line.name} ${this.metric.format(p[1])}${p[0] === nearest ? "" : ` (step ${p[0]})`}`;
    this.tip.replaceChildren(make("b", { textContent: `Step ${nearest}` }),
      ...told.map(([line, p]) => make("span", { className: `key c${line.index}${line.isValid ? " valid" : ""}`, textContent: text(line, p) })));
    this.tip.hidden = false;
    const [x, wide] = [this.x(nearest), this.tip.offsetWidth];
    this.tip.style.left = `${Math.max(0, x + 12 + wide > this.width ? x - 12 - wide : x + 12)}px`;
    if (aloud) this.read.textContent = `Step ${nearest}: ${told.map(([line, p]) => text(line, p)).join(", ")}`;
  }

  leave() {
    this.at = null;
    this.tip.hidden = true;
    this.cursor?.setAttribute("visibility", "hidden");
  }
}

/** What the lines mean. */
export const legend = (lines) => lines.map((line) => make("span", { className: `key c${line.index}${line.isValid ? " valid" : ""}`, textContent: line.mark ? `${line.mark}  ${line.name}` : line.name }));

/** A few points without axes, for a list. */
export function spark(points, what) {
  const [width, height] = [120, 30];
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const along = (values, from, to) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
  };
  const [x, y] = [along(xs, 2, width - 2), along(ys, height - 3, 3)];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${what} from ${number(ys[0])} to ${number(ys.at(-1))}` });
  svg.append(draw("polyline", { class: "line c0", points: points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") }));
  return svg;
}

/** The switches above a chart; `change` is told what is new in the address. */
export function switches(place, query, change, names) {
  const metric = names.includes(query.get("metric")) ? query.get("metric") : names[0];
  const log = query.get("log") === "1";
  const zoom = (query.get("zoom") ?? "").match(/^(\d+)-(\d+)$/)?.slice(1).map(Number) ?? null;
  const button = (text, pressed, changes, disabled = false) => make("button", { type: "button", textContent: text, "aria-pressed": String(pressed), disabled, onclick: () => change(changes) });
  const focused = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  const text = JSON.stringify([names, metric, log, zoom]);
  if (place.dataset.signature !== text) {
    place.dataset.signature = text;
    place.replaceChildren(
      make("div", { className: "switch", role: "group", "aria-label": "What is drawn" }, ...names.map((name) => button(METRICS[name].title, name === metric, { metric: name === names[0] ? null : name }))),
      button("Log scale", log && Boolean(METRICS[metric].canLog), { log: log ? null : "1" }, !METRICS[metric].canLog),
      make("button", { type: "button", className: "reset", textContent: "Show all", disabled: !zoom, onclick: () => change({ zoom: null }) }),
    );
    if (focused >= 0) place.querySelectorAll("button")[focused]?.focus();
  }
  return { metric, log, zoom };
}
