"use strict";

// Sortable tables: a click on a heading sorts by its column, a second click reverses the order. Missing values stay
// last; equal values keep the order of the plans' numbers.
for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const column = Number(heading.dataset.column);
    const value = (row) => row.cells[column].dataset.value;
    const numbers = (one, other) => one.cells[0].dataset.value - other.cells[0].dataset.value;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || numbers(one, other);
      return (falling ? -1 : 1) * (column === 1 ? a.localeCompare(b) : a - b) || numbers(one, other);
    };
    body.append(...[...body.rows].sort(compare));
  });
}

// Predicted cost of each table: shows one plan at a time.
const choice = document.getElementById("plan-of-costs");
if (choice) {
  const show = () => {
    for (const section of document.querySelectorAll(".of-plan")) section.hidden = section.dataset.index !== choice.value;
  };
  choice.addEventListener("change", show);
  show();
}

// Highlights the plan under the pointer in every section.
document.addEventListener("pointerover", (event) => {
  const under = event.target.closest("[data-plan]");
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (under === null) return;
  for (const same of document.querySelectorAll(`[data-plan="${under.dataset.plan}"]`)) same.classList.add("lit");
});
