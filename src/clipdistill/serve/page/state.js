// What is searched for, and how it stands in the page's address. A picture is not in the address but, for this tab
// alone, in the entry of the history.

export const PAGE = 24;

export const EMPTY = Object.freeze({
  q: "", like: [], picture: null, without: "", where: "", tags: [], least: 0, distinct: false,
  index: "", compare: [], k: PAGE, pictureGone: false,
});

/** Whether there is anything to look for; what is left out or filtered by is nothing to look for. */
export const asks = (state) => Boolean(state.q || state.like.length || state.picture);

/** Read the address, and the picture that this tab keeps for it. */
export function read(search, kept) {
  const words = new URLSearchParams(search);
  const least = Number(words.get("least"));
  const k = Number(words.get("k"));
  const picture = typeof kept?.picture === "string" && kept.picture.startsWith("data:image/") ? kept.picture : null;
  return {
    ...EMPTY,
    q: (words.get("q") ?? "").trim(),
    like: words.getAll("like"),
    without: words.get("without") ?? "",
    where: words.get("where") ?? "",
    tags: words.getAll("tag"),
    least: least > 0 && least < 1 ? least : 0,
    distinct: words.get("distinct") === "1",
    index: words.get("index") ?? "",
    compare: words.getAll("compare").slice(0, 3),
    k: k >= 1 && k <= 1000 ? Math.floor(k) : PAGE,
    picture,
    pictureGone: words.get("picture") === "1" && !picture,
  };
}

/** Write the address of a state: what is as usual is left out. */
export function write(state) {
  const words = new URLSearchParams();
  if (state.q) words.set("q", state.q);
  for (const id of state.like) words.append("like", id);
  if (state.picture) words.set("picture", "1");
  if (state.without) words.set("without", state.without);
  if (state.where) words.set("where", state.where);
  for (const tag of state.tags) words.append("tag", tag);
  if (state.least) words.set("least", String(state.least));
  if (state.distinct) words.set("distinct", "1");
  if (state.index) words.set("index", state.index);
  for (const name of state.compare) words.append("compare", name);
  if (state.k !== PAGE) words.set("k", String(state.k));
  const text = words.toString();
  return text ? `/?${text}` : "/";
}

/** Whether hits have probabilities: an index is calibrated for one text, or for one picture, by itself. */
export function likelihoods(state, index) {
  const { text, image } = index?.calibrated ?? {};
  const parts = [state.q, state.picture, ...state.like, state.without.trim()].filter(Boolean);
  return Boolean(asks(state) ? parts.length === 1 && (state.q ? text : image) : text || image);
}

/** Quote a value for the filter language. */
export const quoted = (text) => `'${text.replace(/[\\']/g, "\\$&")}'`;

/** The filter that is typed and the tags that are chosen, as one. */
export function filter(state) {
  const parts = state.tags.map((tag) => `tags has ${quoted(tag)}`);
  if (!state.where.trim()) return parts.join(" and ");
  return parts.length ? `(${state.where}) and ${parts.join(" and ")}` : state.where;
}
