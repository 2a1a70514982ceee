// The page of a server: what is asked for, the making of it, and what is said meanwhile.

import { Client, Gone, Refused, hasToken, keepToken, tokenFromAddress } from "./client.js";
import { Form, controlOf, showErrors } from "./form.js";
import { PaneView } from "./grid.js";
import { Pane, fill, milliseconds } from "./making.js";
import { fromForm, fromQuery, newSeed, seedsOf, toQuery, wrong } from "./state.js";
import { Viewer, saveSheet } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 759px)");

const client = new Client(waited);
const viewer = new Viewer((seed) => {
  const query = toQuery({ ...asked, seed: String(seed), count: "1" });
  return `${location.origin}${location.pathname}?${query}`;
});
let form = null; // once the server has said what it serves
let limits = null;
let asked = null; // the state that the pictures are of
let views = [];
let address = null; // its query
let running = null; // AbortController
let again = start; // what "Try again" does

// Starting ----------------------------------------------------------------------------------------

async function start() {
  say("Loading");
  hideBanner();
  try {
    const served = await client.models();
    limits = served.limits;
    form = new Form(served.models);
  } catch (error) {
    failed(error, start);
    return;
  }
  say("Nothing is made yet.");
  $("form").hidden = false;
  if (form.models.length) openAddress();
  else failed(new Refused(0, { message: "this server has no run yet" }), start);
}

/** Shows what the address says; pictures where it names seeds. */
function openAddress() {
  const query = new URLSearchParams(location.search);
  const found = form.put(fromQuery(query));
  showErrors(found);
  if (query.has("seed") && !Object.keys(found).length) make(false);
  else if (!views.length) preview();
}

/** Empty places, where nothing is made yet. */
function preview() {
  const state = fromForm();
  if (form.models.length && !Object.keys(wrong(state)).length) layOut(state);
}

// Making ------------------------------------------------------------------------------------------

/** Places for what is asked for, still empty. */
function layOut(state) {
  for (const view of views) view.pane.forget();
  asked = state;
  views = panesOf(state).map((pane) => new PaneView(pane, { open: enlarge, twin: mark }));
  $("panes").className = views.length > 1 ? "two" : "";
  $("panes").replaceChildren(...views.map(({ root }) => root));
  $("ratio").hidden = state.mode !== "teacher";
  $("ratio").textContent = "Generator and teacher at the same seeds.";
  fitAll();
}

/** Begins anew with what the form says; ``link`` is whether it becomes the page's address. */
function make(link) {
  const state = fromForm();
  const found = wrong(state);
  showErrors(found);
  if (!form?.models.length || Object.keys(found).length) return;
  running?.abort();
  const query = `?${toQuery(state)}`;
  if (link && query !== location.search) history.pushState(null, "", query);
  address = location.search;
  document.title = `${form.chosen.map(({ name }) => name).join(", ")} · sid-ray`;
  layOut(state);
  if (link && phone.matches) $("pictures").scrollIntoView();
  goOn();
}

function panesOf(state) {
  const [first, second] = form.chosen;
  const steps = Number(state.steps);
  const body = (model, network, chosen) => ({
    model: model.name,
    network,
    ...(model.condition === "prompt" && { prompt: state.prompt }),
    ...(model.condition === "class" && chosen !== "" && { class: Number(chosen) }),
    ...(network === "generator" && model.steps.includes(steps) && { steps }),
  });
  const seeds = seedsOf(state);
  const pane = (...asks) => new Pane(asks[0], body(...asks), seeds, state.mode === "teacher");
  const panes = [pane(first, "generator", state.class)];
  if (state.mode === "teacher") panes.push(pane(first, "teacher", state.class));
  if (second) {
    const own = !$("other-class-field").hidden;
    panes.push(pane(second, "generator", own ? state["other-class"] : state.class));
  }
  return panes;
}

/** Makes what is missing of the pictures that are asked for. */
async function goOn() {
  hideBanner();
  const mine = (running = new AbortController());
  const panes = views.map(({ pane }) => pane);
  tell(true);
  aloud(`Making ${total()} images.`);
  try {
    await fill(panes, client, limits, mine.signal, () => running === mine && tell(true));
  } catch (error) {
    if (running !== mine) return; // another one has begun
    running = null;
    tell(false);
    failed(error, goOn);
    return;
  }
  if (running !== mine) return;
  running = null;
  tell(false);
  aloud($("state").textContent);
}

const total = () => views.reduce((sum, { pane }) => sum + pane.seeds.length, 0);
const made = () => views.reduce((sum, { pane }) => sum + pane.made, 0);

/** Progress, figures and buttons, as they are now. */
function tell(busy) {
  for (const view of views) view.tell(busy);
  const [done, all] = [made(), total()];
  $("progress").hidden = !busy;
  $("progress").value = done / all;
  const seconds = views.reduce((sum, { pane }) => sum + pane.wallMs, 0);
  const ended = `${all} ${all === 1 ? "image" : "images"} in ${(seconds / 1000).toFixed(1)} s`;
  if (busy || done < all) say(`${done} of ${all} images`);
  else say(ended);
  if (busy) sayQuarters(done, all);
  swap($("cancel"), busy);
  swap($("go-on"), !busy && done < all && $("banner").hidden);
  $("sheet").hidden = !done || busy;
  $("keys").hidden = !done;
  tellRatio();
}

/** Teacher against generator, in words. */
function tellRatio() {
  const times = views.map(({ pane }) => pane.made && pane.networkMs / pane.made);
  if (asked.mode !== "teacher" || !times.every(Boolean)) return;
  const ratio = times[1] / times[0];
  const [generator, teacher] = times.map(milliseconds);
  $("ratio").textContent =
    `The teacher takes ${teacher} per image, the generator ${generator}: ` +
    `${ratio >= 9.95 ? Math.round(ratio) : ratio.toFixed(1)} times as fast.`;
}

function swap(button, shown) {
  if (shown) button.hidden = false;
  else hideKeepingFocus(button);
}

/** The focus that was inside goes to where one makes images. */
function hideKeepingFocus(part) {
  const had = part.contains(document.activeElement);
  part.hidden = true;
  if (had) ($("form").hidden ? $("pictures") : $("make")).focus();
}

// Saying ------------------------------------------------------------------------------------------

function say(words, waiting = false) {
  $("state").textContent = words;
  $("state").classList.toggle("waiting", waiting);
}

/** To a screen reader, once. */
function aloud(words) {
  if ($("live").textContent !== words) $("live").textContent = words;
}

let quarter = 0;
function sayQuarters(done, all) {
  const now = Math.floor((4 * done) / all);
  if (now > quarter && now < 4) aloud(`${done} of ${all} images`);
  quarter = now;
}

function waited(seconds, why) {
  if (seconds) {
    const words = `${why} This goes on by itself in ${seconds} s.`;
    if (!$("state").classList.contains("waiting")) aloud(words);
    say(words, true);
  } else if (running) {
    say(`${made()} of ${total()} images`);
  }
}

/** Says what went wrong where it belongs, and what to do. */
function failed(error, then) {
  if (error.name === "AbortError") {
    swap($("go-on"), true);
    say(`Stopped after ${made()} of ${total()} images.`);
    aloud($("state").textContent);
    return;
  }
  again = then;
  swap($("go-on"), false);
  if (!form) say("");
  if (error instanceof Refused && error.status === 401) {
    $("token-form").hidden = false;
    const refused = "The server does not take this token.";
    showErrors({ token: hasToken() ? refused : "This server asks for a token." });
    return;
  }
  const second = views.length > 1 && views[0].pane.made === views[0].pane.seeds.length;
  const control = error instanceof Refused ? controlOf(error.field, second) : "";
  if (control) {
    showErrors({ [control]: error.message });
    return;
  }
  if (!(error instanceof Gone || error instanceof Refused)) console.error(error);
  $("banner-text").textContent = error.message;
  $("banner").hidden = false;
}

function hideBanner() {
  hideKeepingFocus($("banner"));
}

// Looking -----------------------------------------------------------------------------------------

function enlarge(from, index) {
  viewer.open(views, from, index);
}

/** The pictures of the same seed in all panes. */
function mark(index) {
  if (views.length > 1) for (const view of views) view.mark(index);
}

function fitAll() {
  const place = $("panes");
  if (!views.length || !place.clientWidth) return;
  const gap = phone.matches ? 12 : 32;
  const width = (place.clientWidth - gap * (views.length - 1)) / views.length;
  const height = phone.matches ? 0 : innerHeight - place.offsetTop - 120;
  for (const view of views) view.fit(Math.floor(width), height);
  // A seed has the same place in both, also where their pictures have other shapes.
  const columns = Math.max(...views.map((view) => view.columns));
  for (const view of views) if (view.columns < columns) view.fit(Math.floor(width), 0, columns);
}

// Wiring ------------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  make(true);
});
$("form").addEventListener("change", (event) => {
  if (!["mode", "model", "other"].includes(event.target.name || event.target.id)) return;
  form.show();
  if (!running && !made()) preview();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  make(true);
});
$("examples").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) return;
  $("prompt").value = event.target.textContent;
  make(true);
});
$("new-seeds").addEventListener("click", () => {
  $("seed").value = String(newSeed());
  make(true);
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value);
  $("token").value = "";
  showErrors({});
  hideKeepingFocus($("token-form"));
  again();
});
$("cancel").addEventListener("click", () => running?.abort());
$("go-on").addEventListener("click", goOn);
$("retry").addEventListener("click", () => again());
$("sheet").addEventListener("click", () => saveSheet(views));
// Also the link to the pictures changes the address, and asks for nothing.
addEventListener("popstate", () => form && location.search !== address && openAddress());
addEventListener("hashchange", () => tokenFromAddress() && start());
new ResizeObserver(fitAll).observe($("pictures"));

tokenFromAddress();
start();
