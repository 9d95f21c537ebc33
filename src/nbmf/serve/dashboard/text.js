// Figures and addresses as text, the same everywhere on the page.

export const NONE = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Three digits and a unit of thousands: 1.23 kB. */
export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  let size = Math.abs(value);
  let unit = 0;
  // 999.5 would be shown with four digits.
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return `${value < 0 ? "−" : ""}${size.toFixed(digits)} ${UNITS[unit]}`;
}

/** A whole number with commas. */
export function count(value) {
  return value === null || value === undefined ? NONE : Math.round(value).toLocaleString("en-US");
}

/** 5.81× */
export function ratio(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? NONE : `${value.toFixed(2)}×`;
}

/** Seconds, in ms under one of them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds >= 0.9995) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const ms = seconds * 1000;
  return `${ms.toFixed(ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0)} ms`;
}

/** A share of 1. */
export function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : NONE;
}

/** Bits, of a byte or of a record. */
export function bits(value) {
  return `${value.toFixed(2)} bits`;
}

/** The time of day, of seconds of the Unix epoch. */
export function clock(seconds, exact = true) {
  const time = new Date(seconds * 1000);
  const parts = [time.getHours(), time.getMinutes(), ...(exact ? [time.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/** How long something runs: 3 h 12 min. */
export function span(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

/** A namespace as `nbmf` writes it: a slash in a segment is \/, a backslash \\; "/" is everything. */
export function namespaceText(segments) {
  return segments.map((part) => part.replaceAll("\\", "\\\\").replaceAll("/", "\\/")).join("/") || "/";
}

/** The segments of such a text. Throws what a person can read. */
export function namespaceOf(text) {
  if (text === "/" || text === "") return [];
  const segments = [""];
  for (let at = 0; at < text.length; at += 1) {
    let character = text[at];
    if (character === "/") {
      segments.push("");
      continue;
    }
    if (character === "\\") {
      at += 1;
      character = text[at];
      if (character !== "/" && character !== "\\") throw new Error("a backslash stands before a slash or another one only");
    }
    segments[segments.length - 1] += character;
  }
  if (segments.includes("")) throw new Error("a segment of the namespace is empty");
  return segments;
}
