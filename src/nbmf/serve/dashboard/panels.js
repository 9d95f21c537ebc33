// The panels of figures: at a glance, ratio by class, tiers, latency, rollout, models and packs.

import { Chart } from "./charts.js";
import { $, el, figure, fill, table, track } from "./dom.js";
import { NONE, bytes, clock, count, duration, percent, ratio } from "./text.js";

const PARTS = { values: "us", records: "us", blocks: "us", codes: "s2", indexes: "s2", log: "s1", keys: "s3", manifest: "s3" };
const SIZES = ["records", "raw_bytes"];

const lines = [
  ["p50", "us", true],
  ["p95", "s2", false],
  ["p99", "s1", false],
];
const latencies = new Chart("latency-chart", "latency-readout", lines, duration);
const savings = new Chart("saved-chart", "saved-readout", [["saved", "us", true]], bytes);
let picked = null; // the operation whose latencies are drawn
let timed = null; // the figures of /v1/latency

/** Draws the charts anew, in other colours. */
export function recolour() {
  latencies.again();
  savings.again();
}

/** Empties everything: another token may see other figures. */
export function clear() {
  timed = picked = null;
  latencies.forget();
  savings.forget();
  for (const id of ["glance", "class-rows", "tier-rows", "operations", "rollout-facts", "encoders", "cards"]) fill(id);
  for (const id of ["measured", "disk", "divergence"]) $(id).textContent = "";
}

function tile(label, value, text, ...notes) {
  return el("div.tile", {}, el("span.label", {}, label), el("b", {}, figure(value, text)), el("span.dim", {}, ...notes));
}

/** The tiles. `seen`: the answers there are so far, of overview, stats, latency. */
export function glance({ overview, stats, latency }) {
  const { store } = overview;
  const tiles = [];
  const own = stats?.raw_bytes === undefined || stats.ratio_payload === null ? null : stats.blob_bytes * (stats.ratio_payload - 1);
  if (store !== null) {
    const { raw_bytes: raw, stored_bytes: stored } = store.written;
    tiles.push(
      tile("Saved since the server began", raw - stored, bytes(raw - stored), `ratio ${ratio(stored ? raw / stored : null)} of `, figure(raw, bytes(raw)), " written"),
      tile("Records", store.warm.records + store.cold.records, count(store.warm.records + store.cold.records), `${count(store.warm.records)} warm, ${count(store.cold.records)} cold`),
    );
    if (store.disk_bytes !== null) {
      const log = store.warm.parts.log ?? 0;
      const whole = stats?.ratio_disk === undefined ? "all files" : `ratio ${ratio(stats.ratio_disk)}, keys and all files`;
      // Until it is emptied, the log says nothing of what the records take.
      tiles.push(tile("On disk", store.disk_bytes, bytes(store.disk_bytes), 4 * log > store.disk_bytes ? `of which ${bytes(log)} write-ahead log` : whole));
    }
  } else {
    tiles.push(
      tile("Saved in what this token reaches", own, own === null ? NONE : bytes(own), own === null ? "not measured yet" : "raw bytes less their blobs"),
      tile("Records", stats?.records, count(stats?.records), `in ${overview.token.namespaces.length} ${overview.token.namespaces.length === 1 ? "namespace" : "namespaces"} and below`),
      tile("Ratio", stats?.ratio_payload, ratio(stats?.ratio_payload), "of warm blobs"),
    );
  }
  const get = latency?.operations.get;
  if (latency !== null && latency !== undefined) {
    tiles.push(tile("A get, p95", get?.p95, duration(get?.p95), get ? `p50 ${duration(get.p50)}, p99 ${duration(get.p99)}` : "none in the last hour"));
  }
  if (store !== null) {
    const { hits, misses } = store.hot;
    tiles.push(tile("Hot reads", hits + misses ? hits / (hits + misses) : null, hits + misses ? percent(hits / (hits + misses)) : NONE, `${count(hits)} of ${count(hits + misses)} from memory`));
  }
  tiles[0].classList.add("first");
  fill("glance", ...tiles);
}

/** Ratio by class, of measured stats; before that, what is known. */
export function classes(stats, when) {
  const measured = stats.raw_bytes !== undefined;
  $("measured").replaceChildren(
    ...(measured
      ? ["all: ", figure(stats.ratio_payload, ratio(stats.ratio_payload)), ` of ${bytes(stats.raw_bytes)} raw, measured ${clock(when)}`]
      : ["to measure is to decode every record"]),
  );
  if (!measured) {
    fill("class-rows");
    return;
  }
  const rows = Object.entries(stats.classes).sort(([, a], [, b]) => b.raw_bytes - a.raw_bytes);
  const most = Math.max(1, ...rows.map(([, one]) => one.ratio ?? 0));
  fill(
    "class-rows",
    rows.length
      ? table(
          "Ratio by class",
          ["Class", "Records", "Raw", "Ratio", ""],
          rows.map(([name, one]) => [
            name === "" ? el("span.dim", {}, "no class") : name,
            ...SIZES.map((size) => figure(one[size], size === "records" ? count(one[size]) : bytes(one[size]))),
            figure(one.ratio, ratio(one.ratio)),
            track([["us", (one.ratio ?? 0) / most]]),
          ]),
          [4],
        )
      : el("p.dim", {}, "No records yet."),
  );
}

function tier(name, one, most, notes) {
  const parts = Object.entries(one.parts).filter(([, size]) => size > 0).sort(([, a], [, b]) => b - a);
  return el(
    "div.tier",
    {},
    el("h3", {}, name),
    el("span", {}, figure(one.records, count(one.records)), " records"),
    figure(one.bytes, bytes(one.bytes)),
    track(parts.map(([part, size]) => [PARTS[part] ?? "", size / most])),
    el("p.dim.parts", {}, ...(parts.length ? parts.map(([part, size]) => el(`span.key${PARTS[part] ? `.${PARTS[part]}` : ""}`, {}, `${part} ${bytes(size)}`)) : []), notes),
  );
}

/** Hot, warm and cold. */
export function tiers(store) {
  const { hot, warm, cold } = store;
  const most = Math.max(1, hot.bytes, warm.bytes, cold.bytes);
  $("disk").textContent = `semantic index ${bytes(store.index_bytes)} of memory`;
  fill(
    "tier-rows",
    tier("Hot", { ...hot, parts: { values: hot.bytes } }, most, el("span", {}, `at most ${bytes(hot.most_bytes)} of memory`)),
    tier("Warm", warm, most, null),
    tier("Cold", cold, most, cold.records ? null : el("span", {}, "no archives yet")),
  );
}

// -- over time --------------------------------------------------------------------------------------------------------

/** Columns of rows, with an empty row wherever a slot is missing, and before one that is alone. */
function columns(rows, slot) {
  const out = rows.length ? rows[0].map(() => []) : [[], []];
  let last = slot !== null && rows.length === 1 ? rows[0][0] - 2 * slot : null;
  for (const row of rows) {
    if (slot !== null && last !== null && row[0] - last > 1.5 * slot) {
      out.forEach((column, at) => column.push(at === 0 ? last + slot : null));
    }
    row.forEach((value, at) => out[at].push(value));
    last = row[0];
  }
  return out;
}

/** Latency by operation, and what writes saved. */
export function latency(found) {
  timed = found;
  $("slot").textContent = String(found.slot_seconds);
  const names = Object.keys(found.operations).sort((a, b) => found.operations[b].count - found.operations[a].count);
  if (picked === null || !(picked in found.operations)) picked = names.includes("get") ? "get" : (names[0] ?? null);
  const focused = document.activeElement?.name === "operation";
  fill(
    "operations",
    names.length
      ? table(
          "Latency by operation",
          ["Operation", "Count", "Failed", "p50", "p95", "p99"],
          names.map((name) => {
            const one = found.operations[name];
            const choice = el("input", { type: "radio", name: "operation", value: name, checked: name === picked });
            choice.addEventListener("change", () => pick(name));
            return [
              el("label.pick", {}, choice, name.replaceAll("_", " ")),
              figure(one.count, count(one.count)),
              one.failed ? el("span.bad", {}, figure(one.failed, count(one.failed))) : figure(0, "0"),
              ...["p50", "p95", "p99"].map((share) => figure(one[share], duration(one[share]))),
            ];
          }),
        )
      : null,
  );
  if (focused) document.querySelector("[name=operation]:checked")?.focus();
  draw();
  savings.draw(columns(found.written.map(([time, raw, stored]) => [time, raw - stored]), null));
}

function pick(name) {
  picked = name;
  draw();
}

function draw() {
  const series = picked === null ? [] : timed.operations[picked].series;
  const drawn = columns(series.map(([time, , ...shares]) => [time, ...shares]), timed.slot_seconds);
  latencies.draw(drawn.length === 4 ? drawn : [[], [], [], []]);
  $("latency-title").textContent = picked === null ? "Latency" : `Latency of ${picked.replaceAll("_", " ")}`;
}

// -- rollout ----------------------------------------------------------------------------------------------------------

/** How far the neural encoder is rolled out, and whether it diverged. */
export function rollout({ percent: share, shadow, compare_percent: compared, tenants, encoders }) {
  const sum = (name) => Object.values(encoders[name] ?? {}).reduce((a, b) => a + b, 0);
  const diverged = sum("nbmf_divergences_total");
  const pill = $("divergence");
  pill.replaceChildren(figure(diverged, diverged ? count(diverged) : "No"), diverged === 1 ? " divergence" : diverged ? " divergences" : " divergence");
  pill.classList.toggle("bad", diverged > 0);
  const facts = [`shadow ${shadow ? `on, ${compared}% of reads compared` : "off"}`];
  if (tenants?.length) facts.push(`ahead for ${tenants.join(", ")}`);
  fill(
    "rollout-facts",
    el("p", {}, "Neural encoder for ", figure(share, `${share}%`), " of keys"),
    track([["us", share / 100]]),
    el("p.dim", {}, facts.join(" · ")),
  );
  const names = [...new Set(Object.values(encoders).flatMap((sums) => Object.keys(sums)))].sort();
  const of = (figureName, name) => encoders[figureName]?.[name] ?? 0;
  fill(
    "encoders",
    names.length
      ? table(
          "By encoder",
          ["Encoder", "Writes", "Ratio", "Diverged", "Fell back", "Refused"],
          names.map((name) => {
            const stored = of("nbmf_write_stored_bytes", name);
            return [
              name,
              figure(of("nbmf_writes_total", name), count(of("nbmf_writes_total", name))),
              figure(stored ? of("nbmf_write_raw_bytes", name) / stored : null, ratio(stored ? of("nbmf_write_raw_bytes", name) / stored : null)),
              ...["divergences", "fallbacks", "refusals"].map((what) => figure(of(`nbmf_${what}_total`, name), count(of(`nbmf_${what}_total`, name)))),
            ];
          }),
        )
      : el("p.dim", {}, "Nothing written since the server began."),
  );
}

// -- models and packs -------------------------------------------------------------------------------------------------

function card(title, kind, facts) {
  const shown = facts.filter(([, value]) => value !== null && value !== undefined);
  return el(
    "article.card",
    {},
    el("h3", {}, title, " ", el("span.dim", {}, kind)),
    el("dl", {}, ...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
}

/** A card for each model and pack. */
export function cards({ models, packs, version, kernel }) {
  const id = (text) => el("span.mono", { title: text }, text.slice(0, 12));
  const optional = (value, show) => (value === undefined ? null : show(value));
  fill(
    "cards",
    ...models.map((one) =>
      card(one.name, "model", [
        ["Id", id(one.id)],
        ["Size", figure(one.bytes, bytes(one.bytes))],
        ["Profiles", one.profiles.join(", ")],
        ["Trained on", optional(one.card.records, (n) => `${count(n)} records`)],
        ["Raw bytes", optional(one.card.raw_bytes, bytes)],
        ["Sources", optional(one.card.sources, count)],
        ["Kernel", `${kernel}, nbmf ${version}`],
      ]),
    ),
    ...packs.map((one) =>
      card(one.tenant ?? "Pack", "domain pack", [
        ["Id", id(one.id)],
        ["Size", figure(one.bytes, bytes(one.bytes))],
        ["Works with", id(one.model)],
        ["Learned from", optional(one.card.records, (n) => `${count(n)} records`)],
        ["Raw bytes", optional(one.card.raw_bytes, bytes)],
        ["Bits a byte without", optional(one.card.bits_per_byte_without, (n) => n.toFixed(3))],
        ["Bits a byte with", optional(one.card.bits_per_byte_with, (n) => n.toFixed(3))],
      ]),
    ),
  );
}
