"use strict";

// A line of the plot and a row of the table are one trial: pointing at one lights both.
const plot = document.querySelector(".coordinates");
const parts = [...document.querySelectorAll("[data-trial]")];
const light = (number) => {
  for (const part of parts) part.classList.toggle("on", part.dataset.trial === number);
  if (plot) plot.classList.toggle("lit", number !== null);
};
for (const part of parts) {
  part.addEventListener("pointerenter", () => light(part.dataset.trial));
  part.addEventListener("pointerleave", () => light(null));
}
document.documentElement.dataset.ready = "yes";
