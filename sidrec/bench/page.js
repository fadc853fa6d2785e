"use strict";

// Tables: a click on a heading sorts by its column, a second one the other way round; what is missing stays last,
// what is alike in the order of places.
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
    const places = (one, other) => one.cells[0].dataset.value - other.cells[0].dataset.value;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || places(one, other);
      return (falling ? -1 : 1) * (column === 1 ? a.localeCompare(b) : a - b) || places(one, other);
    };
    body.append(...[...body.rows].sort(compare));
  });
}

// Costs of tables: of one plan at a time.
const choice = document.getElementById("plan-of-costs");
if (choice) {
  const show = () => {
    for (const section of document.querySelectorAll(".of-plan")) section.hidden = section.dataset.index !== choice.value;
  };
  choice.addEventListener("change", show);
  show();
}

// The plan under the pointer lights up in every part of the page.
document.addEventListener("pointerover", (event) => {
  const under = event.target.closest("[data-plan]");
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (under === null) return;
  for (const same of document.querySelectorAll(`[data-plan="${under.dataset.plan}"]`)) same.classList.add("lit");
});
