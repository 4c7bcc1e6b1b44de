"use strict";

// Lines, dots and a row of the table are one trial: pointing at one lights all.
const plots = [...document.querySelectorAll(".coordinates, .pictures")];
const parts = [...document.querySelectorAll("[data-trial]")];
const light = (number) => {
  for (const part of parts) part.classList.toggle("on", part.dataset.trial === number);
  for (const plot of plots) plot.classList.toggle("lit", number !== null);
};
for (const part of parts) {
  part.addEventListener("pointerenter", () => light(part.dataset.trial));
  part.addEventListener("pointerleave", () => light(null));
}
document.documentElement.dataset.ready = "yes";
