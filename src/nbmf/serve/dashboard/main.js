// The page: asks for a token where one is needed, then shows what it reaches and keeps that up to date.

import * as api from "./api.js";
import { $ } from "./dom.js";
import * as panels from "./panels.js";
import * as records from "./records.js";
import { span } from "./text.js";

const EVERY = 5000; // ms between two looks at the figures
const SIZES_EVERY = 60_000; // ms between two counts of what a token reaches
const MEASURED_MOST = 5000; // records that are decoded for their ratio unasked
const THEMES = ["auto", "light", "dark"];
const THEME = "nbmf-theme";

const seen = { overview: null, stats: null, latency: null };
let live = true;
let open = false; // whether the figures are on the page
let counted = 0; // when what the token reaches was counted
let timer = 0;

// -- looks ------------------------------------------------------------------------------------------------------------

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  panels.recolour();
}

function nextTheme() {
  const name = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem(THEME, name);
  theme(name);
}

function trouble(text) {
  $("trouble").hidden = text === "";
  $("trouble").textContent = text;
}

// -- the token --------------------------------------------------------------------------------------------------------

/** The screen that asks for a token. Nothing of what was seen stays. */
function gate(refusal) {
  open = false;
  clearTimeout(timer);
  Object.assign(seen, { overview: null, stats: null, latency: null });
  api.setToken(null);
  records.clear();
  panels.clear();
  for (const id of ["page", "sections", "live", "leave"]) $(id).hidden = true;
  $("about").textContent = "";
  $("refusal").textContent = refusal;
  $("gate").hidden = false;
  $("token").value = "";
  $("token").focus();
}

function enter(event) {
  event.preventDefault();
  const token = $("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    $("refusal").textContent = "a token has no spaces, and no letters beyond ASCII";
    return;
  }
  api.setToken(token);
  $("refusal").textContent = "";
  refresh();
}

// -- the figures ------------------------------------------------------------------------------------------------------

/** Lays out the page for what the token may see. */
function begin({ token, store }) {
  open = true;
  for (const id of ["page", "sections", "live"]) $(id).hidden = false;
  $("gate").hidden = true;
  $("leave").hidden = !api.hasToken();
  $("page").classList.toggle("whole", store !== null);
  $("page").classList.toggle("timed", token.metrics);
  for (const one of document.querySelectorAll("[data-whole]")) one.hidden = store === null;
  for (const one of document.querySelectorAll("[data-latency]")) one.hidden = !token.metrics;
  panels.recolour();
  records.offer(token.namespaces);
}

/** Which server this is, for whom, and since when. */
function about({ token, store, version, kernel }) {
  const parts = [version, `${kernel} kernel`, api.hasToken() ? token.name : "", store ? `up ${span(store.seconds)}` : ""];
  $("about").textContent = parts.filter(Boolean).join(" · ");
}

async function measure(wanted) {
  const button = $("measure");
  button.disabled = true;
  try {
    seen.stats = await api.stats(wanted);
    counted = Date.now();
    panels.classes(seen.stats, counted / 1000);
    panels.glance(seen);
  } finally {
    button.disabled = false;
  }
}

/** What is unknown of what the token reaches is counted; measured too, unless that takes long. */
async function sizes(store) {
  if (seen.stats !== null && (store !== null || Date.now() - counted < SIZES_EVERY)) return;
  const few = store !== null && store.warm.records + store.cold.records <= MEASURED_MOST;
  await measure(few);
  if (!few && seen.stats.records <= MEASURED_MOST) await measure(true);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const overview = await api.overview();
    const latency = overview.token.metrics ? await api.latency() : null;
    Object.assign(seen, { overview, latency });
    if (!open) begin(overview);
    about(overview);
    panels.glance(seen);
    panels.cards(overview);
    if (overview.store !== null) {
      panels.tiers(overview.store);
      panels.rollout(overview.store.rollout);
    }
    if (latency !== null) panels.latency(latency);
    await sizes(overview.store);
    trouble("");
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (error.status === api.GONE) return;
    if (error.status === 401) {
      gate(api.hasToken() ? "this token is not, or no longer, accepted" : "");
      return;
    }
    trouble(`${error.message}; trying again`);
  }
  document.documentElement.dataset.ready = "true";
  timer = setTimeout(() => {
    if (live && !document.hidden) refresh();
  }, EVERY);
}

function pause() {
  live = !live;
  $("live").setAttribute("aria-pressed", String(live));
  if (live) refresh();
}

records.begin();
theme(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");
$("theme").addEventListener("click", nextTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panels.recolour());
$("gate").addEventListener("submit", enter);
$("leave").addEventListener("click", () => gate(""));
$("live").addEventListener("click", pause);
$("measure").addEventListener("click", () => measure(true).catch((error) => trouble(error.message)));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && live && open) refresh();
});
refresh();
