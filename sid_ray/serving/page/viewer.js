// One picture enlarged, with the others of its seed, a link to it and a download; and all pictures
// as one sheet.

import { element } from "./grid.js";
import { milliseconds } from "./making.js";

const $ = (id) => document.getElementById(id);

export class Viewer {
  /** ``linkTo(seed)`` is the address that opens this seed alone. */
  constructor(linkTo) {
    this.linkTo = linkTo;
    this.dialog = $("viewer");
    $("close").addEventListener("click", () => this.dialog.close());
    $("previous").addEventListener("click", () => this.step(-1));
    $("next").addEventListener("click", () => this.step(1));
    $("copy").addEventListener("click", () => this.copy());
    this.dialog.addEventListener("close", () => this.from?.buttons[this.index]?.focus());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside what is shown
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target === $("link")) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) this.step(by);
    });
  }

  /** Shows the pictures at ``index`` of all views, opened from one of them. */
  open(views, from, index) {
    Object.assign(this, { views, from });
    this.show(index);
    this.dialog.showModal();
  }

  step(by) {
    const next = this.index + by;
    if (this.from.pane.pictures[next]) this.show(next);
  }

  show(index) {
    this.index = index;
    const { pictures } = this.from.pane;
    $("viewer-title").textContent = `Seed ${pictures[index].seed}`;
    const shown = this.views.filter((view) => view.pane.pictures[index]);
    $("figures").replaceChildren(...shown.map((view) => figure(view, index)));
    $("figures").className = shown.length > 1 ? "two" : "";
    $("link").value = this.linkTo(pictures[index].seed);
    $("copied").textContent = "";
    $("copy").textContent = "Copy link";
    for (const [id, by] of [["previous", -1], ["next", 1]]) {
      $(id).setAttribute("aria-disabled", String(!pictures[index + by]));
    }
  }

  async copy() {
    try {
      await navigator.clipboard.writeText($("link").value);
      $("copy").textContent = $("copied").textContent = "Copied";
    } catch {
      $("link").select(); // without https there is no clipboard: the reader copies
      $("copied").textContent = "The link is selected: copy it.";
    }
  }
}

function figure({ pane, pixelated }, index) {
  const picture = pane.pictures[index];
  const image = element("img", {
    src: picture.url,
    alt: [`Seed ${picture.seed}`, picture.says].filter(Boolean).join(", "),
    className: pixelated ? "pixels" : "",
  });
  const [high, across] = pane.model.size;
  image.style.setProperty("--ratio", across / high);
  const save = element("a", {
    href: picture.url,
    download: fileName(pane, `seed${picture.seed}`),
    className: "button",
    textContent: "Download",
    "aria-label": `Download, ${pane.name}`,
  });
  const words = [pane.name, pane.effort, picture.says].filter(Boolean).join(" · ");
  const caption = element(
    "figcaption",
    {},
    element("span", { textContent: words }),
    element("span", { className: "quiet", textContent: perImage(picture.networkMs) }),
    save,
  );
  return element("figure", {}, image, caption);
}

const perImage = (value) => `${milliseconds(value)} in the network`;

/** A name of a file, of letters that every disk takes. */
function fileName(pane, rest) {
  return `${pane.name}-${rest}`.replace(/[^\p{L}\p{N}._-]+/gu, "-") + ".png";
}

/** Saves all made pictures as one PNG: the grids beside one another. */
export async function saveSheet(views) {
  const parts = await Promise.all(views.map(loaded));
  const { width, height } = parts[0][0].image;
  const scale = Math.max(1, Math.floor(96 / width)); // of tiny images, whole pixels
  const [across, high] = [width * scale + 4, height * scale + 4];
  const columns = Math.max(...views.map((view) => view.columns));
  const rows = Math.ceil(views[0].pane.seeds.length / columns);
  const canvas = element("canvas", {
    width: views.length * columns * across + (views.length - 1) * 16 + 4,
    height: rows * high + 4,
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = scale === 1;
  for (const [side, pictures] of parts.entries()) {
    for (const { image, index } of pictures) {
      const x = side * (columns * across + 16) + (index % columns) * across + 4;
      const y = Math.floor(index / columns) * high + 4;
      context.drawImage(image, x, y, across - 4, high - 4);
    }
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const url = URL.createObjectURL(blob);
  const { seeds } = views[0].pane;
  const download = fileName(views[0].pane, `seeds${seeds[0]}-${seeds.at(-1)}`);
  element("a", { href: url, download }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has begun to read it by then
}

async function loaded(view) {
  const made = view.pane.pictures.map((picture, index) => ({ picture, index }));
  return Promise.all(
    made
      .filter(({ picture }) => picture)
      .map(async ({ picture, index }) => {
        const image = element("img", { src: picture.url });
        await image.decode();
        return { image, index };
      }),
  );
}
