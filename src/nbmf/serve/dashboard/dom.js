// Elements. Whatever a record holds goes into the page as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** An element of a tag, with classes after dots ("td.wide"), properties and attributes, and children. */
export function el(tag, fields = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [field, value] of Object.entries(fields)) {
    if (value === null || value === undefined || value === false) continue;
    if (field === "width") made.style.width = value;
    else if (field in made && field !== "list") made[field] = value;
    else made.setAttribute(field, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A figure: its text, and the exact value beside it. */
export function figure(value, text) {
  return el("data", { value: value === null || value === undefined ? "" : String(value) }, text);
}

/** Puts children in place of what an element holds. */
export function fill(id, ...children) {
  $(id).replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

/** A table of rows of cells, under its heads; a cell is a node, a text, or null. `wide` are columns of bars. */
export function table(label, heads, rows, wide = []) {
  const cell = (tag, content, at, fields = {}) => el(wide.includes(at) ? `${tag}.wide` : tag, fields, content ?? "");
  return el(
    "table",
    { "aria-label": label },
    el("thead", {}, el("tr", {}, ...heads.map((head, at) => cell("th", head, at, { scope: "col" })))),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el("tr", {}, ...row.map((one, at) => (at === 0 ? cell("th", one, at, { scope: "row" }) : cell("td", one, at)))),
      ),
    ),
  );
}

/** A bar of parts: [class, share of the whole width]. */
export function track(parts) {
  const shown = parts.filter(([, share]) => share > 0);
  return el("div.track", { "aria-hidden": "true" }, ...shown.map(([name, share]) => el(`i${name ? `.${name}` : ""}`, { width: `${100 * share}%` })));
}
