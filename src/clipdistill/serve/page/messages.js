// What the page says where there are no hits to show: the first visit, no match, and every failure.

import { make } from "./dom.js";
import { number, percent, say } from "./words.js";

function message(heading, texts, ...buttons) {
  return make("div", { class: "message" },
    make("h2", {}, heading), ...texts.map((text) => make("p", {}, text)), ...buttons.filter(Boolean));
}

const button = (word, click) => make("button", { type: "button", class: "more", click }, say(word));

/** The first visit: what can be done here, and captions of the index to try. */
export function welcome(index, ask) {
  const examples = index?.examples ?? [];
  const tries = examples.map((text) => make("li", {}, make("button", { type: "button", class: "example", dir: "auto", click: () => ask(text) }, text)));
  return [
    make("p", { class: "lede" }, index ? say("lede") : say("none")),
    tries.length ? make("ul", { class: "examples", "aria-label": say("examples") }, ...tries) : null,
  ].filter(Boolean);
}

/** What stands over the first visit. */
export function headline(index) {
  return index?.count !== undefined ? say("headline", { count: number(index.count) }) : say("headlinePlain");
}

/** No match: why, and what can be given up. `nearest` tells that hits follow. */
export function nothing(least, filtered, nearest, acts) {
  const unsure = least ? say("nothingSure", { share: percent(least) }) : say("nothingLikely");
  const why = nearest ? unsure : filtered ? say("nothingAtAll") : say("nothingElse");
  return message(say("nothing"), [why, ...(nearest ? [say("nearest")] : [])],
    nearest && least ? button("dropLeast", acts.dropLeast) : null,
    !nearest && filtered ? button("dropFilter", acts.dropFilter) : null);
}

/** A failure and the way out of it; `again` tries once more. Gives the element, and `stop` that ends its waiting. */
export function failed(failure, acts) {
  if (failure.kind === "busy") return waiting(failure.wait, acts.again);
  const texts = { gone: ["gone", say("goneHelp")], slow: ["slow", say("slowHelp")] };
  const [heading, told] = texts[failure.kind] ?? ["wrong", failure.message];
  return { element: message(say(heading), [told], button("again", acts.again)), stop() {} };
}

/** Count the seconds down that the server asks to wait, then try again by itself. */
function waiting(seconds, again) {
  const told = make("p", { role: "timer" });
  const element = make("div", { class: "message" }, make("h2", {}, say("busy")), told, button("again", () => (stop(), again())));
  const tell = () => (told.textContent = say("busyHelp", { seconds }));
  const clock = setInterval(() => {
    seconds -= 1;
    tell();
    if (seconds <= 0) stop(), again();
  }, 1000);
  const stop = () => clearInterval(clock);
  tell();
  return { element, stop };
}

/** The server's words on a filter, with its place counted in what was typed, without what the page put around. */
export function placed(text, typed, sent) {
  const shift = sent.startsWith("(") && sent !== typed ? 1 : 0;
  const found = /^the filter is wrong at character (\d+): ([^\n]*)/.exec(text);
  if (!found) return text;
  const at = Math.min(Number(found[1]) - 1 - shift, typed.length);
  const pointed = shift ? `\n    ${typed}\n    ${" ".repeat(at)}^` : text.slice(text.indexOf("\n"));
  return say("filterWrong", { at: at + 1, what: found[2] }) + pointed;
}
