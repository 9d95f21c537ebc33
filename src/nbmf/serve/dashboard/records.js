// Search, and a record taken apart: its facts, and what each of its characters costs under the model.

import * as api from "./api.js";
import { $, el, figure, fill } from "./dom.js";
import { NONE, bits, bytes, count, namespaceOf, namespaceText, percent, ratio } from "./text.js";

const LIMIT = 20;
const SNIPPET = 240; // characters

let pieces = []; // the elements of the heat map, and the cost of each
let cursor = -1;
let turn = 0; // answers to earlier questions than the last are dropped
let bearer = 0; // how many tokens there were

function snippet(item) {
  const value = "value" in item ? item.value : `${item.type}, ${bytes(Math.floor((item.base64.length * 3) / 4))}`;
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.slice(0, SNIPPET).replaceAll(/\s+/g, " ");
}

function result(item) {
  const button = el(
    "button",
    { type: "button" },
    el("span.where", {}, el("span.dim", {}, `${namespaceText(item.namespace)} `), item.key),
    el("span.dim", {}, [item.class, item.stored_bytes === null ? "cold" : bytes(item.stored_bytes), item.score === null ? "" : item.score.toFixed(2)].filter(Boolean).join(" · ")),
    el("span.snippet", {}, snippet(item)),
  );
  button.addEventListener("click", () => {
    document.querySelector("#results [aria-current]")?.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    $("namespace").value = namespaceText(item.namespace);
    $("key").value = item.key;
    inspect();
  });
  return el("li", {}, button);
}

/** Shows what is found for the words, below the prefix. */
export async function search() {
  const query = $("query").value.trim();
  const own = (turn += 1);
  $("found").textContent = "searching …";
  try {
    const prefix = namespaceOf($("prefix").value.trim());
    const { items } = await api.search({ prefix, limit: LIMIT, ...(query ? { query } : {}) });
    if (own !== turn) return;
    $("found").textContent = items.length === 0 ? "nothing found" : `${items.length === LIMIT ? "the first " : ""}${items.length}${query ? " for these words" : ", the latest"}`;
    fill("results", ...items.map(result));
  } catch (error) {
    if (own !== turn) return;
    $("found").textContent = error.message;
    fill("results");
  }
}

// -- a record ---------------------------------------------------------------------------------------------------------

/** Shows the record at the address that is in the form. */
export async function inspect() {
  const own = (turn += 1);
  $("missing").textContent = "";
  $("none").hidden = true;
  try {
    const found = await api.inspect(namespaceOf($("namespace").value.trim()), $("key").value);
    if (own === turn) show(found);
  } catch (error) {
    if (own !== turn) return;
    $("missing").textContent = error.message;
    $("record").hidden = true;
  }
}

function show(found) {
  const size = found.stored_bytes;
  const facts = [
    ["Raw", figure(found.raw_bytes, bytes(found.raw_bytes))],
    ["Stored", size === null ? "in an archive" : figure(size, bytes(size))],
    ["Ratio", size ? figure(found.raw_bytes / size, ratio(found.raw_bytes / size)) : NONE],
    ["Type", found.type],
    ["Class", found.class || "no class"],
    ["Tier", found.tier],
    ["Method", found.profile ? `${found.method}, ${found.profile}` : found.method],
    ["Fidelity", found.fidelity],
    ["Updated", el("time", { dateTime: found.updated }, when(found.updated))],
    ["Expires", found.expires === null ? "never" : el("time", { dateTime: found.expires }, when(found.expires))],
    ["Costs by", el("span.mono", { title: found.pack ?? found.model }, `${found.pack ? "pack" : "model"} ${(found.pack ?? found.model).slice(0, 8)}`)],
    ["Bits of what is shown", figure(found.shown_bits, count(found.shown_bits))],
  ];
  fill("facts", ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  heat(found);
  $("record").hidden = false;
}

function when(text) {
  return text.slice(0, 16).replace("T", " ");
}

function heat({ pieces: found, levels, raw_bytes: raw, shown_bytes: shown }) {
  const level = (cost) => levels.findIndex(({ under }) => under === null || cost < under);
  pieces = found.map(([text, cost]) => [el(`span.l${level(cost)}`, { title: bits(cost) }, text), cost]);
  cursor = -1;
  fill("heat", ...pieces.map(([made]) => made), raw > shown ? el("em.dim", {}, ` … and ${bytes(raw - shown)} more`) : null);
  $("heat").scrollTop = 0;
  fill("shares", ...levels.map((one, at) => el(`i.l${at}`, { width: `${(100 * one.bytes) / Math.max(1, shown)}%` })));
  fill(
    "scale",
    ...levels.map(({ under, bytes: size }, at) => {
      const low = at === 0 ? 0 : levels[at - 1].under;
      const range = under === null ? `${low} and more` : `${low}–${under}`;
      return el(`li.l${at}`, {}, `${range}: `, figure(size, percent(size / Math.max(1, shown))));
    }),
  );
  $("heat-readout").textContent = "";
}

function move(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps) || !pieces.length) return;
  event.preventDefault();
  pieces[cursor]?.[0].classList.remove("at");
  cursor = Math.min(pieces.length - 1, Math.max(0, cursor + steps[event.key]));
  const [made, cost] = pieces[cursor];
  made.classList.add("at");
  made.scrollIntoView({ block: "nearest" });
  $("heat-readout").textContent = `“${made.textContent.trim() || "space"}” ${bits(cost)} a byte`;
}

/** Has the forms work, once. */
export function begin() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  $("inspect").addEventListener("submit", (event) => {
    event.preventDefault();
    inspect();
  });
  $("heat").addEventListener("keydown", move);
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement && event.target.type !== "radio";
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      $("query").focus();
    }
  });
}

/** Empties everything: another token may see other records. */
export function clear() {
  turn += 1;
  bearer += 1;
  pieces = [];
  for (const id of ["query", "prefix", "namespace", "key"]) $(id).value = "";
  for (const id of ["results", "facts", "heat", "shares", "scale", "namespaces"]) fill(id);
  for (const id of ["found", "missing", "heat-readout"]) $(id).textContent = "";
  $("record").hidden = true;
  $("none").hidden = false;
}

/** Offers the namespaces that the token reaches, and begins below its first. */
export async function offer(prefixes) {
  $("prefix").value = namespaceText(prefixes[0]);
  const own = bearer;
  const found = await Promise.all(prefixes.map((prefix) => api.namespaces(prefix).catch(() => ({ namespaces: [] }))));
  if (own !== bearer) return;
  const names = new Set(found.flatMap((one) => one.namespaces.map(namespaceText)));
  fill("namespaces", ...[...names].sort().map((name) => el("option", { value: name })));
  await search();
}
