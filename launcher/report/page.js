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

// Answers: filters by kind and by words, and only the first few until asked for.
const FIRST = 6;
const wanted = (text) => {
  const words = text.toLowerCase().split(/\s+/);
  return (element) => {
    const content = element.textContent.toLowerCase();
    return words.every((word) => content.includes(word));
  };
};
for (const answers of document.querySelectorAll(".answers")) {
  const samples = [...answers.querySelectorAll(".sample")];
  const buttons = [...answers.querySelectorAll(".filters button")];
  const box = answers.querySelector("input");
  const more = answers.querySelector(".more");
  let kind = "all";
  let all = samples.length <= FIRST;

  const arrange = () => {
    const matches = wanted(box.value);
    const fitting = samples.filter((s) => (kind === "all" || s.dataset.kind === kind) && matches(s));
    for (const sample of samples) sample.hidden = true;
    for (const sample of all ? fitting : fitting.slice(0, FIRST)) sample.hidden = false;
    more.hidden = all || fitting.length <= FIRST;
    more.textContent = "Show all " + fitting.length;
    answers.querySelector(".none").hidden = fitting.length > 0;
  };
  answers.querySelector(".filters").hidden = samples.length < 2;
  for (const button of buttons) {
    button.addEventListener("click", () => {
      kind = button.dataset.kind;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      arrange();
    });
  }
  box.addEventListener("input", arrange);
  more.addEventListener("click", () => { all = true; arrange(); });
  arrange();
}

// Drawn answers: those of one rollout at a time, the last one first; arrow keys go to others.
for (const drawn of document.querySelectorAll(".drawn")) {
  const buttons = [...drawn.querySelectorAll(".steps button")];
  const rollouts = [...drawn.querySelectorAll(".rollout")];
  const choose = (index) => {
    rollouts.forEach((rollout, i) => { rollout.hidden = i !== index; });
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === index));
      button.tabIndex = i === index ? 0 : -1;
    });
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => choose(index));
    button.addEventListener("keydown", (event) => {
      const last = buttons.length - 1;
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(last, to));
      choose(next);
      buttons[next].focus();
    });
  });
  drawn.querySelector(".steps").hidden = buttons.length < 2;
  choose(buttons.length - 1);
}

// Config and environment: a filter box.
for (const box of document.querySelectorAll("details > input[type=search]")) {
  const rows = [...box.parentElement.querySelectorAll("tr")];
  box.hidden = rows.length < 8;
  box.addEventListener("input", () => {
    const matches = wanted(box.value);
    for (const row of rows) row.hidden = !matches(row);
  });
}
document.documentElement.dataset.ready = "yes";
