// Hits as a grid, and one of them at large.

import { show } from "./api.js";
import { $, icon, make } from "./dom.js";
import { number, percent, say } from "./words.js";

/** What a hit is called where it has no caption. */
export const named = (hit) => hit.caption || hit.id;

/** A bar and a number: how likely a hit is a match, or its cosine where that is not known. */
export function sureness(hit) {
  const known = hit.probability !== null;
  const inner = make("i");
  inner.style.setProperty("--share", String(Math.max(0, Math.min(1, known ? hit.probability : hit.score))));
  const cosine = say("cosineTold", { score: number(hit.score, 3) });
  const told = known ? say("likely", { share: percent(hit.probability) }) : number(hit.score, 3);
  const unseen = known ? say("likelyTold", { share: percent(hit.probability) }) : cosine;
  return make("p", { class: known ? "sure" : "sure cosine", title: cosine },
    make("span", { class: "bar", "aria-hidden": "true" }, inner),
    make("span", { "aria-hidden": "true" }, told), make("span", { class: "unseen" }, unseen));
}

/** The button with a hit's thumbnail, which opens it at large. */
export function thumbnail(hit, open) {
  const image = make("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false" });
  show(image, hit.thumbnail);
  return make("button", { type: "button", class: "thumb", "aria-label": say("open", { what: named(hit) }), click: open }, image);
}

function card(hit, hits, acts) {
  return make("li", { class: "hit" },
    thumbnail(hit, () => large(hit, hits, acts)),
    sureness(hit),
    make("p", { class: "caption", title: named(hit), dir: "auto" }, named(hit)),
    make("button", { type: "button", class: "like", "aria-label": `${say("like")}: ${named(hit)}`, click: () => acts.like(hit) }, say("like")));
}

/** The grid of hits; `dim` where they are only what is nearest. `acts` has like(hit) and tag(name). */
export function grid(hits, acts, dim = false) {
  return make("ol", { class: dim ? "hits dim" : "hits" }, ...hits.map((hit) => card(hit, hits, acts)));
}

/** Where hits will be. */
export function skeleton(count = 12) {
  const ghosts = Array.from({ length: count }, () => make("li", { class: "hit" }, make("span", { class: "ghost" }), make("span", { class: "ghost" })));
  return make("ol", { class: "hits", "aria-hidden": "true" }, ...ghosts);
}

/** Open a hit at large; arrows lead to those before and after it. */
export function large(hit, hits, acts) {
  const dialog = $("detail");
  fill(dialog, hit, hits, acts);
  if (!dialog.open) dialog.showModal();
}

function fill(dialog, hit, hits, acts) {
  const at = hits.indexOf(hit);
  const step = (by) => {
    const other = hits[at + by];
    if (!other) return;
    fill(dialog, other, hits, acts);
    dialog.querySelector(by < 0 ? "[data-step='-1']" : "[data-step='1']").focus();
  };
  const leave = (act) => () => (dialog.close(), act());
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  dialog.setAttribute("aria-label", say("detail"));
  const image = make("img", { alt: named(hit) });
  show(image, hit.thumbnail);
  const tags = hit.tags.map((tag) => make("li", {}, make("button", { type: "button", class: "chip", click: leave(() => acts.tag(tag)) }, tag)));
  const move = (by, name, drawing) => make("button", { type: "button", class: "quiet icon", "data-step": by, "aria-label": say(name), "aria-disabled": hits[at + by] ? "false" : "true", click: () => step(by) }, icon(drawing));
  dialog.replaceChildren(make("div", { class: "sheet" },
    make("div", { class: "thumb" }, image),
    make("h2", { dir: "auto" }, named(hit)),
    facts(hit, at),
    tags.length ? make("ul", { class: "chips" }, ...tags) : null,
    make("div", { class: "actions" },
      make("button", { type: "button", class: "go", click: leave(() => acts.like(hit)) }, say("like")),
      move(-1, "previous", "left"), move(1, "next", "right"),
      make("button", { type: "button", class: "quiet", click: () => dialog.close() }, say("close")))));
}

function facts(hit, at) {
  const rows = [[say("id"), hit.id], [say("size"), say("pixels", { width: hit.width, height: hit.height })]];
  if (hit.probability !== null) rows.push([say("likelihood"), say("likely", { share: percent(hit.probability) })]);
  rows.push([say("score"), number(hit.score, 3)]);
  const list = make("dl", { class: "facts" }, ...rows.flatMap(([term, told]) => [make("dt", {}, term), make("dd", {}, told)]));
  if (/^https?:\/\//.test(hit.location ?? "")) {
    const link = make("a", { href: hit.location, target: "_blank", rel: "noopener noreferrer" }, hit.location);
    list.append(make("dt", {}, say("original")), make("dd", {}, link));
  }
  return list;
}
