"use strict";

// Charts: a cursor and the values at it, by pointer, touch or arrow keys.
for (const figure of document.querySelectorAll(".chart")) {
  const series = JSON.parse(figure.dataset.hover);
  const area = figure.querySelector(".plot-area");
  const cursor = figure.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const places = [...new Set(series.filter((s) => !s.level).flatMap((s) => s.points.map((p) => p[0])))];
  places.sort((a, b) => a - b);
  let current = places.length - 1;

  const nearest = (points, x) =>
    points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));

  const show = (index) => {
    current = Math.max(0, Math.min(places.length - 1, index));
    const x = places[current];
    let step = "";
    const lines = [];
    for (const s of series) {
      const point = nearest(s.points, x);
      if (!s.level && Math.abs(point[0] - x) > 0.02) continue;
      if (!s.level && point[0] === x) step = point[2];
      const line = document.createElement("i");
      const name = document.createElement("span");
      name.className = "c-" + s.colour;
      name.textContent = s.label + " ";
      line.append(name, point[3]);
      lines.push(line, document.createElement("br"));
    }
    const title = document.createElement("b");
    title.textContent = "step " + step;
    tip.replaceChildren(title, ...lines.slice(0, -1));
    cursor.hidden = tip.hidden = false;
    cursor.style.left = 100 * x + "%";
    // On the far side of the cursor where there is little room, else beside it.
    const beside = area.clientWidth > 480;
    tip.style.left = x < 0.5 ? (beside ? `calc(${100 * x}% + 10px)` : "auto") : beside ? "auto" : "0";
    tip.style.right = x < 0.5 ? (beside ? "auto" : "0") : beside ? `calc(${100 - 100 * x}% + 10px)` : "auto";
  };
  const hide = () => { cursor.hidden = tip.hidden = true; };

  const follow = (event) => {
    const box = area.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    show(places.indexOf(places.reduce((best, p) => (Math.abs(p - x) < Math.abs(best - x) ? p : best))));
  };
  area.addEventListener("pointermove", follow);
  area.addEventListener("pointerdown", follow);
  area.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(tip.hidden ? current : current + move);
  });
}

// Answers: a filter, and only the first few until asked for.
const FIRST = 6;
const samples = [...document.querySelectorAll(".sample")];
const filters = document.querySelector(".filters");
const more = document.querySelector(".more");
let kind = "all";
let all = samples.length <= FIRST;

const arrange = () => {
  const fitting = samples.filter((sample) => kind === "all" || sample.dataset.kind === kind);
  for (const sample of samples) sample.hidden = true;
  for (const sample of all ? fitting : fitting.slice(0, FIRST)) sample.hidden = false;
  more.hidden = all || fitting.length <= FIRST;
};
if (samples.length) {
  filters.hidden = filters.children.length < 3;
  filters.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    kind = button.dataset.kind;
    for (const other of filters.children) other.setAttribute("aria-pressed", String(other === button));
    arrange();
  });
  more.addEventListener("click", () => { all = true; arrange(); });
  arrange();
}

// Config and environment: a filter box.
for (const box of document.querySelectorAll("input[type=search]")) {
  const rows = [...box.parentElement.querySelectorAll("tr")];
  box.hidden = rows.length < 8;
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
document.documentElement.dataset.ready = "yes";
