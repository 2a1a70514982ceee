// Fills panes with pictures: a few seeds a request, some requests at once, panes one after the
// other, so that no network is timed while another one computes.

import { Refused } from "./client.js";

const AT_ONCE = 4; // requests
const FEW = 4; // seeds of a request; the first request has one, to show something at once
const MOST = 16; // seeds of a request where the server is fast
const FAST_MS = 400;

/** What is to be made of one network, and what was.
 *
 * ``body`` is the request without its seeds, ``model`` the ServedModel; ``pictures`` has a place
 * for each seed: null until it is made, then {seed, url, says, networkMs}. ``place(index)`` is
 * called when one is.
 */
export class Pane {
  constructor(model, body, seeds, besideTeacher) {
    Object.assign(this, { model, body, seeds, besideTeacher });
    this.pictures = seeds.map(() => null);
    this.place = () => {};
    this.steps = null; // as the server says
    this.networkMs = 0; // of all pictures together
    this.wallMs = 0;
    this.batch = 0; // images of the largest batch of the network
  }

  get made() {
    return this.pictures.filter(Boolean).length;
  }

  /** "digits", or beside a teacher "digits, generator". */
  get name() {
    return this.besideTeacher ? `${this.model.name}, ${this.body.network}` : this.model.name;
  }

  /** How many evaluations of the network a picture takes, in words. */
  get effort() {
    if (this.body.network === "teacher") return this.model.teacher?.label ?? "";
    const steps = this.steps ?? this.body.steps ?? this.model.steps[0];
    return `${steps} ${steps === 1 ? "step" : "steps"}`;
  }

  /** Takes what the server has made of the seeds at ``places``. */
  async take(answer, places) {
    const perImage = (1000 * answer.seconds.network) / answer.images.length;
    this.steps = answer.steps ?? this.steps;
    this.batch = Math.max(this.batch, answer.batch);
    for (const [at, image] of answer.images.entries()) {
      const blob = new Blob([bytes(image.png)], { type: "image/png" });
      this.pictures[places[at]] = {
        seed: image.seed,
        url: URL.createObjectURL(blob),
        says: this.condition(image),
        networkMs: perImage,
      };
      this.networkMs += perImage;
      this.place(places[at]);
    }
  }

  /** What the picture shows, in words: its prompt or class. */
  condition(image) {
    if (this.model.condition === "prompt") return `“${image.prompt ?? this.body.prompt}”`;
    if (this.model.condition !== "class" || image.class == null) return "";
    return `class ${this.model.classes[image.class] ?? image.class}`;
  }

  forget() {
    for (const picture of this.pictures) if (picture) URL.revokeObjectURL(picture.url);
  }
}

/** Makes what is missing; ``changed()`` is called after each answer. Raises as the client does. */
export async function fill(panes, client, limits, signal, changed) {
  for (const pane of panes) {
    const missing = [...pane.seeds.keys()].filter((index) => !pane.pictures[index]);
    if (!missing.length) continue;
    const started = performance.now();
    const failures = [];
    let size = 1;
    const work = async () => {
      while (missing.length && !failures.length) {
        const places = missing.splice(0, Math.min(size, limits.images));
        size = Math.max(size, FEW);
        const seeds = places.map((index) => pane.seeds[index]);
        const asked = performance.now();
        const answer = await client.images({ ...pane.body, seeds }, signal);
        signal.throwIfAborted();
        if (performance.now() - asked < FAST_MS) size = Math.min(2 * size, MOST);
        if (answer?.images?.length !== seeds.length) {
          throw new Refused(0, { message: "The server answered with another number of images." });
        }
        await pane.take(answer, places);
        changed();
      }
    };
    // Where one request fails, no more are sent; what those under way bring is kept.
    const guarded = () => work().catch((error) => failures.push(error));
    await Promise.all(Array.from({ length: AT_ONCE }, guarded));
    pane.wallMs += performance.now() - started;
    if (failures.length) throw failures[0];
  }
}

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) found[index] = text.charCodeAt(index);
  return found;
}

/** Milliseconds as a person reads them. */
export function milliseconds(value) {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(digits)} ms`;
}
