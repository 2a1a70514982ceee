// The form: which fields a run has, what they offer, and what is wrong, beside the field.

import { element } from "./grid.js";
import { FIELDS, fromForm } from "./state.js";

const $ = (id) => document.getElementById(id);
const ERRORS = ["token", ...FIELDS];
/** Fields of a request by the control that they come from. */
const CONTROLS = { seeds: "seed", network: "model", size: "model" };

export class Form {
  constructor(models) {
    this.models = models;
    const offers = models.map(({ name }) => [name, name]);
    fillSelect($("model"), offers);
    fillSelect($("other"), offers);
    if (models.length > 1) $("other").value = models[1].name;
    this.show();
  }

  model(field = "model") {
    return this.models.find(({ name }) => name === $(field).value);
  }

  /** The models whose pictures are to be made, in order. */
  get chosen() {
    const two = fromForm().mode === "runs";
    return [this.model(), two && this.model("other")].filter(Boolean);
  }

  /** Fields and offers of what is chosen. */
  show() {
    this.modes();
    const { mode } = fromForm();
    const [first, second] = this.chosen;
    $("model-label").textContent = mode === "runs" ? "First run" : "Run";
    $("other-field").hidden = mode !== "runs";
    $("model-facts").textContent = first ? facts(first) : "";
    $("other-facts").textContent = second ? facts(second) : "";
    this.conditions(first, second);
    const steps = [...new Set(this.chosen.flatMap((model) => model.steps))];
    $("steps-field").hidden = steps.length < 2;
    const own = second ? [["", "each run's own"]] : [];
    fillSelect($("steps"), [...own, ...steps.map((number) => [String(number), String(number)])]);
  }

  /** What cannot be shown is not offered, and a line says why. */
  modes() {
    const teacher = Boolean(this.model()?.teacher);
    const two = this.models.length > 1;
    document.querySelector("input[value=teacher]").disabled = !teacher;
    document.querySelector("input[value=runs]").disabled = !two;
    if (document.querySelector("input[name=mode]:checked").disabled) {
      document.querySelector("input[value=one]").checked = true;
    }
    const why = [
      !teacher && "The teacher of this run is not served.",
      !two && "This server has one run.",
    ];
    $("mode-hint").textContent = why.filter(Boolean).join(" ");
    $("mode-hint").hidden = !why.some(Boolean);
  }

  conditions(first, second) {
    const reading = this.chosen.filter(({ condition }) => condition === "prompt");
    const examples = [...new Set(reading.flatMap((model) => model.examples))].slice(0, 6);
    $("prompt-field").hidden = !reading.length;
    $("examples").replaceChildren(
      ...examples.map((text) => element("button", { type: "button", textContent: text })),
    );
    if (!$("prompt").value && examples.length) $("prompt").value = examples[0];
    const classes = (model) => (model?.condition === "class" ? model.classes : []);
    const [one, two] = [classes(first), classes(second)];
    const own = two.length > 0 && two.join("\n") !== one.join("\n");
    $("class-field").hidden = !one.length;
    $("other-class-field").hidden = !own;
    $("class-label").textContent = own ? "Class of the first run" : "Class";
    for (const [id, names] of [["class", one], ["other-class", own ? two : []]]) {
      const offers = names.map((name, index) => [String(index), name]);
      fillSelect($(id), [["", "any, drawn by the seed"], ...offers]);
    }
  }

  /** Puts in what an address says. Returns {field: what is wrong} of what is not offered here. */
  put(state) {
    const found = {};
    for (const field of ["model", "other"]) {
      if (state[field] === undefined) continue;
      if (this.models.some(({ name }) => name === state[field])) $(field).value = state[field];
      else found[field] = `This server has no run ${state[field]}.`;
    }
    document.querySelector(`input[name=mode][value=${state.mode}]`).checked = true;
    for (const field of ["prompt", "seed", "count"]) {
      if (state[field] !== undefined) $(field).value = state[field];
    }
    this.show();
    if (fromForm().mode !== state.mode) {
      found.model ??= "This server cannot show that link's comparison.";
    }
    for (const field of ["class", "other-class", "steps"]) {
      const value = state[field];
      if (value === undefined || $(field).closest("[hidden]")) {
        $(field).selectedIndex = 0;
        continue;
      }
      $(field).value = value;
      if ($(field).selectedIndex < 0) {
        $(field).selectedIndex = 0;
        found[field] = `${value} is not among them here.`;
      }
    }
    return found;
  }
}

/** Of {field: words}; all others are cleared. The first of them gets the focus. */
export function showErrors(found) {
  let first = null;
  for (const field of ERRORS) {
    const words = found[field] ?? "";
    $(`${field}-error`).textContent = words;
    if (words) {
      $(field).setAttribute("aria-invalid", "true");
      first ??= $(field);
    } else $(field).removeAttribute("aria-invalid");
  }
  first?.focus();
}

/** The control that a field of a request comes from, for a pane; empty where none is shown. */
export function controlOf(field, second) {
  let control = CONTROLS[field] ?? field;
  if (second && control === "model") control = "other";
  if (second && control === "class" && !$("other-class-field").hidden) control = "other-class";
  return ERRORS.includes(control) && !$(control).closest("[hidden]") ? control : "";
}

/** Keeps the choice where it is still offered. */
function fillSelect(select, offers) {
  const before = select.value;
  select.replaceChildren(
    ...offers.map(([value, text]) => element("option", { value, textContent: text })),
  );
  if (offers.some(([value]) => value === before)) select.value = before;
}

function facts(model) {
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const scores = Object.entries(model.scores ?? {});
  return [
    model.label,
    model.images_seen != null && `${model.images_seen.toLocaleString("en")} images seen`,
    ...scores.slice(0, 2).map(([name, value]) => `${name} ${number.format(value)}`),
    model.base && `teacher ${model.base}`,
    model.licence,
  ]
    .filter(Boolean)
    .join(" · ");
}
