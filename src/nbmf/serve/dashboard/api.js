// Requests to the server that gave this page. The token is kept for this tab alone.

const KEPT = "nbmf-token";
export const GONE = -1;
let token = sessionStorage.getItem(KEPT);

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasToken = () => token !== null;

export function setToken(value) {
  token = value;
  if (value === null) sessionStorage.removeItem(KEPT);
  else sessionStorage.setItem(KEPT, value);
}

/** The JSON of an answer. Throws ApiError; its status is 0 where no answer came, GONE if the token is another by now. */
async function ask(path, options = {}) {
  const asked = token;
  const headers = { ...options.headers };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch {
    throw new ApiError(0, "the server does not answer");
  }
  const body = await answer.json().catch(() => null);
  if (token !== asked) throw new ApiError(GONE, "the token was changed");
  if (!answer.ok) throw new ApiError(answer.status, body?.error?.message ?? `the server answers ${answer.status}`);
  return body;
}

const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

const address = (namespace, key) =>
  new URLSearchParams([...namespace.map((segment) => ["namespace", segment]), ["key", key]]);

export const overview = () => ask("v1/overview");
export const latency = () => ask("v1/latency");
export const stats = (measure) => ask(`v1/stats?measure=${measure}`);
export const search = (fields) => post("v1/search", fields);
export const namespaces = (prefix) => post("v1/namespaces", { prefix, limit: 200 });
export const inspect = (namespace, key) => ask(`v1/inspect?${address(namespace, key)}`);
