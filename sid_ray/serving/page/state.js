// What is asked for, as the form and the address hold it: a link opens the same pictures again.

const $ = (id) => document.getElementById(id);
const MOST_SEED = 2 ** 32 - 1;
export const MOST_IMAGES = 256; // of one network, on this page

/** Parts of the state that are in the address, by their name there, as text. */
export const FIELDS = [
  "model", "other", "prompt", "class", "other-class", "seed", "count", "steps",
];
const NAMES = { count: "images", other: "with" };
const named = (field) => NAMES[field] ?? field;

/** {mode, model, other, prompt, class, other-class, seed, count, steps}, all texts, those of hidden
 * fields empty. */
export function fromForm() {
  const state = { mode: document.querySelector("input[name=mode]:checked").value };
  for (const field of FIELDS) {
    const control = $(field);
    state[field] = control.closest("[hidden]") ? "" : control.value;
  }
  return state;
}

export function toQuery(state) {
  const query = new URLSearchParams();
  if (state.mode !== "one") query.set("show", state.mode);
  for (const field of FIELDS) if (state[field]) query.set(named(field), state[field]);
  return query;
}

/** Only what the address says. */
export function fromQuery(query) {
  const mode = query.get("show");
  const state = { mode: ["teacher", "runs"].includes(mode) ? mode : "one" };
  for (const field of FIELDS) {
    const value = query.get(named(field));
    if (value !== null) state[field] = value;
  }
  return state;
}

/** {field: what is wrong with it} of what can be said without the server. */
export function wrong(state) {
  const found = {};
  const count = whole(state.count);
  const seed = whole(state.seed);
  if (!(count >= 1 && count <= MOST_IMAGES)) {
    found.count = `Images: a whole number from 1 to ${MOST_IMAGES}.`;
  }
  if (!(seed >= 0 && seed <= MOST_SEED)) {
    found.seed = `First seed: a whole number from 0 to ${MOST_SEED}.`;
  } else if (count && seed + count - 1 > MOST_SEED) {
    found.seed = `The last seed would be beyond ${MOST_SEED}.`;
  }
  return found;
}

export const whole = (text) => (/^\d{1,10}$/.test(text.trim()) ? Number(text) : NaN);

export function seedsOf(state) {
  const first = whole(state.seed);
  return Array.from({ length: whole(state.count) }, (_, index) => first + index);
}

/** A first seed that a person can still say to another. */
export const newSeed = () => Math.floor(Math.random() * 1_000_000);
