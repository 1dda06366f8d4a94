// What the page asks of the server: the indexes, a search, and thumbnails.

import { filter, likelihoods } from "./state.js";

const KEY = "clipdistill key";
/** A server that says nothing for so long is given up, in milliseconds. */
const PATIENCE = 60_000;

/** Why a request failed: `kind` is gone, key, busy (after `wait` seconds), slow, field (`param`), or wrong. */
export class Failure extends Error {
  constructor(kind, message = "", more = {}) {
    super(message);
    Object.assign(this, { kind, ...more });
  }
}

let keyInMemory = "";

export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? keyInMemory;
  } catch {
    return keyInMemory;
  }
}

export function keepKey(text) {
  keyInMemory = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // Storage is switched off: it is forgotten with the page.
  }
}

const headers = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

async function ask(address, options = {}) {
  const late = AbortSignal.timeout(PATIENCE);
  const signal = options.signal ? AbortSignal.any([options.signal, late]) : late;
  let response;
  try {
    response = await fetch(address, { ...options, signal, headers: { ...options.headers, ...headers() } });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(late.aborted ? "slow" : "gone");
  }
  const body = await response.json().catch(() => null);
  if (options.signal?.aborted) throw options.signal.reason;
  if (response.ok && body) return body;
  throw failure(response, body?.error ?? {});
}

function failure(response, error) {
  const message = error.message ?? `HTTP ${response.status}`;
  const wait = Math.min(120, Math.max(1, Number(response.headers.get("Retry-After")) || 2));
  if (response.status === 401) return new Failure("key", message);
  const later = response.status === 503 && response.headers.has("Retry-After");
  if (response.status === 429 || later) return new Failure("busy", message, { wait });
  if (response.status === 504 || response.status === 503) return new Failure("slow", message);
  if (response.status === 502) return new Failure("gone", message);
  return new Failure(error.param ? "field" : "wrong", message, { param: error.param });
}

export const indexes = async (signal) => (await ask("/api/indexes", { signal })).indexes;

/** Search one index, as the server describes it, for a state; gives the server's answer, and `whole`: its milliseconds as seen from here. */
export async function search(state, index, signal, changes = {}) {
  const where = filter(state);
  const body = {
    ...(index.name && { index: index.name }),
    texts: state.q ? [state.q] : [],
    images: state.picture ? [state.picture] : [],
    ids: state.like,
    negatives: state.without.trim() ? [state.without.trim()] : [],
    ...(where && { where }),
    ...(state.least && likelihoods(state, index) && { min_precision: state.least }),
    distinct: state.distinct,
    k: state.k,
    ...changes,
  };
  const start = performance.now();
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
  const answer = await ask("/api/search", options);
  return { ...answer, whole: performance.now() - start };
}

/** The address of the thumbnail of a picture that no hit has told it of. */
export function thumbnailOf(index, id) {
  return `/thumbnails/${encodeURIComponent(index)}/${encodeURIComponent(id)}`;
}

const drawn = new WeakMap();

/** Show a thumbnail in an image; behind a key it is fetched, since an image sends no key by itself. */
export function show(image, address) {
  image.addEventListener("error", () => image.classList.add("lost"));
  image.addEventListener("load", () => {
    image.classList.remove("lost");
    image.classList.toggle("tiny", image.naturalWidth < 100 && image.naturalHeight < 100);
  });
  if (!key() || !address.startsWith("/")) image.src = address;
  else seen.observe(image), drawn.set(image, address);
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) seen.unobserve(target), fetchInto(target, drawn.get(target));
  }
}, { rootMargin: "300px" });

async function fetchInto(image, address) {
  try {
    const response = await fetch(address, { headers: headers() });
    if (!response.ok) throw new Error(String(response.status));
    const url = URL.createObjectURL(await response.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch {
    image.classList.add("lost");
  }
}
