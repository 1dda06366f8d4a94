// The page: a state is what is searched for; `go` writes it into the address and the form, and searches.

import { indexes as askIndexes, keepKey, key, search } from "./api.js";
import { columns, searchAll } from "./compare.js";
import { collect, complain, name, note, offer, present, sure, tags } from "./controls.js";
import { $, make } from "./dom.js";
import { grid, skeleton } from "./hits.js";
import { failed, headline, nothing, placed, welcome } from "./messages.js";
import { PictureError, pictureOf, shrink } from "./picture.js";
import { asks, EMPTY, filter, likelihoods, PAGE, read, write } from "./state.js";
import { language, number, say, speak } from "./words.js";

/** A search that takes longer shows where hits will be, in milliseconds. */
const SLOW = 300;
const MOST = 1000;

let state = EMPTY;
let indexes = [];
let running = new AbortController();
/** Draws what is shown once more, in another language. */
let redraw = () => {};
let stopWaiting = () => {};

// ---- States

/** Make a state the page's: `history` is push, replace, or keep after going back. */
function go(next, history = "push") {
  const moved = write(next) !== location.pathname + location.search || next.picture !== state.picture;
  state = next;
  if (history !== "keep") remember(history === "push" && moved ? "pushState" : "replaceState");
  present(state, indexes, acts);
  document.title = titled();
  return run();
}

const titled = () => (state.q ? say("title", { what: state.q }) : "clipdistill");

function remember(way) {
  try {
    window.history[way]({ picture: state.picture }, "", write(state));
  } catch {
    window.history[way](null, "", write(state)); // the picture is more than this browser keeps
  }
}

/** Search again with something changed, and with what is typed by now. */
const change = (changes) => go({ ...collect(state), k: PAGE, ...changes });

/** The index that is searched, as the server describes it; one that it does not know has a name alone. */
const called = (name) => indexes.find((index) => index.name === name) ?? { name };
const current = () => (state.index || !indexes.length ? called(state.index) : indexes[0]);

const acts = {
  like: (hit) => {
    change({ like: [hit.id], q: "", picture: null });
    $("results").focus({ preventScroll: true });
    scrollTo({ top: 0 });
  },
  tag: (tag) => change({ tags: state.tags.includes(tag) ? state.tags.filter((other) => other !== tag) : [...state.tags, tag] }),
  dropLeast: () => change({ least: 0 }),
  dropFilter: () => change({ where: "", tags: [] }),
  again: () => run(),
  remove: (what) => change(what),
  pick: (names) => change({ compare: names }),
};

// ---- Searching

/** Search for the state and show what comes; a newer search ends an older one. The first asks for the indexes too. */
async function run() {
  running.abort();
  running = new AbortController();
  stopWaiting();
  const { signal } = running;
  const slow = asks(state) ? setTimeout(() => draw(showSearching), SLOW) : undefined;
  $("results").setAttribute("aria-busy", "true");
  try {
    if (!indexes.length) {
      indexes = await askIndexes(signal);
      offer(state, indexes, acts); // what was typed meanwhile stays
    }
    const view = !asks(state) ? showWelcome : state.compare.length ? await compared(signal) : await searched(signal);
    clearTimeout(slow);
    draw(view);
  } catch (error) {
    clearTimeout(slow);
    if (!signal.aborted) fail(error);
  } finally {
    if (!signal.aborted) $("results").removeAttribute("aria-busy");
  }
}

/** One index: a view of its hits, or of what is nearest where nothing matches. */
async function searched(signal) {
  const answer = await search(state, current(), signal);
  const { hits } = answer;
  const unlikely = Boolean(answer.nothing_matches && hits.length && hits[0].probability !== null && hits[0].probability < 0.5);
  if (hits.length && !unlikely) return () => showHits(answer);
  const nearest = hits.length || !state.least ? answer : await search(state, current(), signal, { min_precision: undefined });
  return () => showNothing(nearest);
}

async function compared(signal) {
  const names = state.compare;
  const answers = await searchAll(state, names.map(called), signal);
  const refused = answers.find(({ failure }) => failure && failure.kind !== "wrong" && failure.kind !== "field");
  const asked = answers.find(({ failure }) => failure?.param === "where");
  if (refused || asked) throw (refused ?? asked).failure;
  return () => showCompared(names, answers);
}

function fail(error) {
  if (!error.kind) throw error; // a fault of the page itself
  if (error.kind === "key") return askKey();
  if (error.kind === "field" && error.param === "where") {
    draw(showNone);
    complain(placed(error.message, state.where, filter(state)));
    return;
  }
  draw(() => showFailed(error));
}

// ---- Views

function draw(view) {
  redraw = view;
  view();
}

const fill = (...elements) => $("results").replaceChildren(...elements);

/** Say in the line above the hits what came; only read out where the page shows it in large letters. */
const told = (text, title = "", aloud = false) => {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").title = title;
  $("status").classList.toggle("unseen", aloud);
};

function showNone() {
  $("headline").hidden = true;
  told("");
  tags([], state.tags, acts.tag);
  fill();
}

function showFailed(error) {
  stopWaiting();
  showNone();
  const { element, stop } = failed(error, acts);
  stopWaiting = stop;
  told(element.querySelector("h2").textContent, "", true);
  fill(element);
}

function showWelcome() {
  showNone();
  $("headline").hidden = false;
  $("headline").textContent = headline(current());
  fill(...welcome(current(), (text) => (change({ q: text }), $("text").focus())));
}

function showSearching() {
  $("headline").hidden = true;
  told(say("searching"));
  fill(skeleton());
}

function showHits(answer) {
  const { hits, milliseconds, whole } = answer;
  showNone();
  const time = number(milliseconds, 1);
  const plain = hits[0].probability === null ? ` ${say("cosines")}` : "";
  told((hits.length === 1 ? say("foundOne", { time }) : say("found", { count: number(hits.length), time })) + plain, say("roundTrip", { time: number(whole, 1) }));
  tags(hits, state.tags, acts.tag);
  const more = hits.length === state.k && state.k < MOST;
  fill(grid(hits, acts), ...(more ? [make("button", { type: "button", class: "more", click: showMore }, say("more"))] : []));
}

async function showMore() {
  const had = $("results").querySelectorAll(".hit").length;
  await go({ ...state, k: Math.min(MOST, state.k + PAGE) }, "replace");
  $("results").querySelectorAll(".thumb")[had]?.focus({ preventScroll: true });
}

function showNothing(answer) {
  showNone();
  told(say("nothing"), "", true);
  const filtered = Boolean(filter(state));
  tags(answer.hits, state.tags, acts.tag);
  const least = likelihoods(state, current()) ? state.least : 0;
  fill(nothing(least, filtered, answer.hits.length > 0, acts), grid(answer.hits, acts, true));
}

function showCompared(names, answers) {
  showNone();
  const { board, shared } = columns(names, answers, acts);
  told(say("everywhereCount", { count: shared }));
  tags(answers.flatMap((answer) => answer.hits), state.tags, acts.tag);
  fill(board);
}

// ---- Key

function askKey() {
  draw(showNone);
  $("key-told").dataset.word = key() ? "keyWrong" : "keyAsked";
  $("key-told").textContent = say($("key-told").dataset.word);
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  run();
});

// ---- Pictures

async function take(file) {
  try {
    change({ picture: await shrink(file), like: [] });
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    note(say(error.word, error.values), true);
  }
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) take(file);
  $("file").value = "";
});
addEventListener("paste", (event) => {
  const file = pictureOf(event.clipboardData);
  if (!file) return;
  event.preventDefault();
  take(file);
});
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!carries(event)) return;
  event.preventDefault();
  const file = pictureOf(event.dataTransfer) ?? event.dataTransfer.files[0];
  if (file) take(file);
});

// ---- Controls

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  // Enter tells that a field has changed, too, and that has begun the same search.
  const begun = $("results").ariaBusy === "true" && write({ ...collect(state), k: PAGE }) === write(state);
  if (!begun) change({});
});
for (const id of ["without", "where", "least", "distinct"]) $(id).addEventListener("change", () => change({}));
$("least").addEventListener("input", () => sure(true));
$("index").addEventListener("change", () => change({ index: $("index").value }));
$("compare").addEventListener("click", () => {
  const names = [current().name, ...indexes.map((index) => index.name).filter((other) => other !== current().name)];
  change({ compare: state.compare.length ? [] : names.slice(0, 3) });
});
$("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(EMPTY);
  $("text").focus();
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest?.("input, textarea, select, dialog[open]")) return;
  event.preventDefault();
  $("text").focus();
  $("text").select();
});
addEventListener("popstate", (event) => {
  $("detail").close();
  go(read(location.search, event.state), "keep");
});
$("detail").addEventListener("click", (event) => {
  if (event.target === $("detail")) $("detail").close(); // beside the sheet
});

// ---- Language and colours

function stored(what, value) {
  try {
    if (value !== undefined) localStorage.setItem(what, value);
    return localStorage.getItem(what);
  } catch {
    return null;
  }
}

const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const rename = () => name(dark() ? "themeLight" : "themeDark");

$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = stored("theme", dark() ? "light" : "dark") ?? (dark() ? "light" : "dark");
  rename();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rename);
$("language").addEventListener("click", () => {
  talk(language() === "zh" ? "en" : "zh");
  stored("language", language());
  offer(state, indexes, acts);
  redraw();
});

function talk(code) {
  speak(code);
  rename();
}

// ---- Start

const wanted = stored("language") ?? navigator.languages.find((code) => /^(en|zh)\b/i.test(code)) ?? "en";
talk(wanted.slice(0, 2).toLowerCase());
state = read(location.search, window.history.state);
present(state, indexes, acts);
remember("replaceState");
document.title = titled();
$("refine").open = Boolean(state.without || state.where || state.least || state.distinct);
if (!asks(state)) $("text").focus();
run();
