// The same query in up to three indexes side by side.

import { search } from "./api.js";
import { make } from "./dom.js";
import { large, sureness, named, thumbnail } from "./hits.js";
import { quoted } from "./state.js";
import { number, say } from "./words.js";

/** Hits that are shown of each index. */
export const TOP = 10;

/** Search several indexes at once; each gives its answer, or the failure in its place. */
export async function searchAll(state, indexes, signal) {
  const results = await Promise.allSettled(indexes.map((index) => one(state, index, signal)));
  if (signal.aborted) throw signal.reason;
  return results.map((result) => (result.status === "fulfilled" ? result.value : { failure: result.reason, hits: [], right: [] }));
}

/** One index's answer, and `right`: the ids of the pictures whose caption the query is, found or not. */
async function one(state, index, signal) {
  const answer = await search(state, index, signal, { k: TOP });
  if (!state.q || state.picture || state.like.length) return { ...answer, right: [] };
  const found = answer.hits.filter((hit) => hit.caption === state.q);
  const held = found.length ? found : await captioned(state, index, signal);
  return { ...answer, right: held.map((hit) => hit.id) };
}

async function captioned(state, index, signal) {
  const changes = { k: TOP, where: `caption = ${quoted(state.q)}`, min_precision: undefined };
  return (await search(state, index, signal, changes)).hits;
}

/** The columns; a hit that every index found is marked, and so is the right one. */
export function columns(names, answers, acts) {
  const worked = answers.filter((answer) => !answer.failure);
  const everywhere = new Set(worked.length > 1 ? worked[0].hits.map((hit) => hit.id).filter((id) => worked.every((answer) => answer.hits.some((hit) => hit.id === id))) : []);
  const board = make("div", { class: "columns" }, ...names.map((name, place) => column(name, answers[place], everywhere, acts)));
  const light = (id) => {
    for (const line of board.querySelectorAll(".line")) line.classList.toggle("same", id !== undefined && line.dataset.id === id);
  };
  for (const kind of ["pointerover", "focusin"]) board.addEventListener(kind, (event) => light(event.target.closest(".line")?.dataset.id));
  for (const kind of ["pointerleave", "focusout"]) board.addEventListener(kind, () => light());
  return { board, shared: everywhere.size };
}

function column(name, answer, everywhere, acts) {
  const told = answer.failure ? [answer.failure.message || say("gone")] : summary(answer);
  const lines = answer.hits.map((hit, at) => line(hit, at, answer, everywhere, acts));
  return make("section", { class: "column", "aria-label": name },
    make("h2", {}, name), make("p", answer.failure ? { class: "note bad" } : {}, ...told), make("ol", {}, ...lines));
}

function summary(answer) {
  const told = say(answer.hits.length === 1 ? "foundOne" : "found", { count: answer.hits.length, time: number(answer.milliseconds, 1) });
  if (!answer.right.length) return [told];
  const rank = answer.hits.findIndex((hit) => answer.right.includes(hit.id)) + 1;
  const right = rank ? say("rightAt", { rank }) : say("rightMissing", { count: answer.hits.length });
  return [told, make("br"), right];
}

function line(hit, at, answer, everywhere, acts) {
  const right = answer.right.includes(hit.id);
  const marks = [right && make("span", { class: "yes" }, `✓ ${say("right")}`), everywhere.has(hit.id) && make("span", {}, `● ${say("everywhere")}`)].filter(Boolean);
  return make("li", { class: right ? "line right" : "line", "data-id": hit.id },
    make("span", { class: "rank" }, String(at + 1)),
    thumbnail(hit, () => large(hit, answer.hits, acts)),
    make("div", {}, make("p", { class: "caption", dir: "auto" }, named(hit)), sureness(hit), marks.length ? make("div", { class: "marks" }, ...marks) : null));
}
