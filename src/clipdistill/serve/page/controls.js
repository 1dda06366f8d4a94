// The form and the header: a state is written into them, and read back from them.

import { thumbnailOf, show } from "./api.js";
import { $, icon, make } from "./dom.js";
import { likelihoods } from "./state.js";
import { percent, say } from "./words.js";

/** Read what is typed and set, on top of a state. */
export function collect(state) {
  return {
    ...state,
    q: $("text").value.trim(),
    without: $("without").value.trim(),
    where: $("where").value,
    least: Number($("least").value),
    distinct: $("distinct").checked,
    pictureGone: false,
  };
}

/** Write a state into the form and around it; `acts` has remove(what) and pick(names). */
export function present(state, indexes, acts) {
  $("text").value = state.q;
  $("without").value = state.without;
  $("where").value = state.where;
  $("least").value = String(state.least);
  $("distinct").checked = state.distinct;
  complain("");
  offer(state, indexes, acts);
}

/** Write what is around that which is typed: it depends on the indexes, and speaks a language. */
export function offer(state, indexes, acts) {
  sure(likely(state, indexes));
  note(state.pictureGone ? say("pictureGone") : state.picture ? say("pictureStays") : "");
  const used = [state.without, state.where.trim(), state.least, state.distinct].filter(Boolean).length;
  $("refined").hidden = !used;
  $("refined").textContent = used;
  $("refined").title = say("refined", { count: used });
  attach(state, indexes, acts);
  choose(state, indexes, acts);
}

/** Whether the slider may mean something to the index that is searched, or to any of those that are compared. */
function likely(state, indexes) {
  if (!indexes.length) return true; // the server has not told them yet
  const names = state.compare.length ? state.compare : [state.index || indexes[0]?.name];
  return indexes.some((index) => names.includes(index.name) && likelihoods(state, index));
}

/** Tell what the slider stands at, or that there is nothing to set. */
export function sure(able) {
  const least = Number($("least").value);
  $("least").disabled = !able;
  const share = say("likely", { share: percent(least) });
  $("least-told").textContent = !able ? say("unsure") : least ? `≥ ${share}` : say("any");
}

/** Names that the language changes and that are no text of an element. */
export function name(theme) {
  $("text").placeholder = say("placeholder");
  $("language").lang = say("language") === "English" ? "en" : "zh";
  $("language").textContent = say("language");
  for (const [id, word] of [["text", "textLabel"], ["choose", "choose"], ["theme", theme], ["home", "home"], ["tags", "tags"]]) {
    $(id).setAttribute("aria-label", say(word));
  }
  for (const [id, word] of [["choose", "choose"], ["theme", theme]]) $(id).title = say(word);
  document.body.dataset.drop = say("drop");
}

function attach(state, indexes, acts) {
  const item = (what, address, remove) => {
    const image = make("img", { alt: what });
    if (address.startsWith("data:")) image.src = address;
    else if (index) show(image, address); // before the server has told its indexes, there is none
    return make("li", { title: what }, image, make("button", { type: "button", "aria-label": say("remove", { what }), click: remove }, icon("cross")));
  };
  const index = state.index || indexes[0]?.name || "";
  $("attached").replaceChildren(
    ...(state.picture ? [item(say("attachedPicture"), state.picture, () => acts.remove({ picture: null }))] : []),
    ...state.like.map((id) => item(say("attachedLike", { id }), thumbnailOf(index, id), () => acts.remove({ like: state.like.filter((other) => other !== id) }))));
}

function choose(state, indexes, acts) {
  const several = indexes.length > 1;
  const comparing = state.compare.length > 0;
  $("compare").hidden = !several;
  $("compare").setAttribute("aria-pressed", String(comparing));
  $("which").hidden = !several || comparing;
  $("index").replaceChildren(...indexes.map(({ name }) => make("option", { value: name }, name)));
  $("index").value = state.index || indexes[0]?.name || "";
  $("picks").hidden = !comparing;
  const boxes = indexes.map(({ name }) => {
    const box = make("input", { type: "checkbox", value: name, change: () => acts.pick(chosen()) });
    box.checked = state.compare.includes(name);
    box.disabled = box.checked ? state.compare.length === 1 : state.compare.length === 3;
    return make("label", {}, box, name);
  });
  const chosen = () => [...$("picks").querySelectorAll(":checked")].map((box) => box.value);
  const had = $("picks").contains(document.activeElement) ? document.activeElement.value : null;
  $("picks").replaceChildren($("picks").querySelector("legend"), ...boxes);
  if (had !== null) [...$("picks").querySelectorAll("input")].find((box) => box.value === had)?.focus();
}

/** Chips of the tags that hits have, those that are chosen first. */
export function tags(hits, chosen, toggle) {
  const counts = new Map();
  for (const tag of hits.flatMap((hit) => hit.tags)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  const often = [...counts].sort((one, other) => other[1] - one[1] || one[0].localeCompare(other[0])).map(([tag]) => tag);
  const shown = [...chosen, ...often.filter((tag) => !chosen.includes(tag)).slice(0, 12)];
  const had = document.activeElement?.dataset?.tag;
  $("tags").hidden = !shown.length;
  $("tags").replaceChildren(...shown.map((tag) => make("li", {}, make("button", { type: "button", class: "chip", "data-tag": tag, "aria-pressed": String(chosen.includes(tag)), click: () => toggle(tag) }, tag))));
  if (had !== undefined) [...$("tags").querySelectorAll("button")].find((chip) => chip.dataset.tag === had)?.focus();
}

/** Say what is wrong with the filter, beside it; nothing takes it back. */
export function complain(text) {
  $("where-error").hidden = !text;
  $("where-error").textContent = text;
  if (text) {
    $("where").setAttribute("aria-invalid", "true");
    $("refine").open = true;
  } else $("where").removeAttribute("aria-invalid");
}

export function note(text, bad = false) {
  $("note").textContent = text;
  $("note").classList.toggle("bad", bad);
}
