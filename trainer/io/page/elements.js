"use strict";
const at = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const digits = (value, places = 0) =>
  value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
const percent = (value, places = 1) => `${digits(100 * value, places)} %`;

function add(parent, tag, text = "", className = "") {
  const child = document.createElement(tag);
  child.textContent = text;
  if (className) child.className = className;
  parent.appendChild(child);
  return child;
}

/* rows: of texts. The first `words` columns are words, and the `last` ones; the others numbers. */
function table(id, head, rows, words = 1, last = 0) {
  const place = at(id);
  const columns = (head ?? rows[0]).length;
  const kind = (column) => (column < words || column >= columns - last ? "" : "number");
  if (head) {
    const line = add(place, "tr");
    head.forEach((text, column) => add(line, "th", text, kind(column)));
  }
  rows.forEach((row) => {
    const line = add(place, "tr");
    row.forEach((text, column) => add(line, "td", text, kind(column)));
  });
}

/* list: of [name, text], each in a box. */
function boxes(id, list) {
  for (const [name, value] of list) {
    const box = add(at(id), "div");
    add(box, "dt", name);
    add(box, "dd", value);
  }
}

function legend(id, entries) {
  for (const [name, words] of entries) {
    const entry = add(at(id), "span");
    add(entry, "i").style.background = `var(--${name})`;
    entry.append(words);
  }
}

/* values: [colour, amount, words] of one bar; limit: where a mark is drawn. */
function bar(place, label, values, most, end, limit = 0) {
  const row = add(place, "div", "", limit && values.reduce((sum, [, v]) => sum + v, 0) > limit ? "row over" : "row");
  add(row, "span", label);
  const line = add(row, "div", "", "bar");
  for (const [name, amount, words] of values) {
    const piece = add(line, "span");
    piece.style.width = `${(100 * amount) / most}%`;
    piece.style.background = `var(--${name})`;
    piece.title = words;
  }
  if (limit) add(line, "span", "", "limit").style.left = `${(100 * limit) / most}%`;
  add(row, "span", end);
}
