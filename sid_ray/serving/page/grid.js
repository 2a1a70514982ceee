// A pane's heading, its figures, and its grid of pictures, which arrow keys move in.

import { milliseconds } from "./making.js";

const GAP = 8; // pixels between pictures, as in page.css
const SMALL = 64; // images up to this many pixels are shown as pixels, larger ones smoothly

/** An element with properties and children; all texts are texts, never HTML. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export class PaneView {
  /** ``open(view, index)`` is called for the picture to be enlarged, ``twin(index)`` when one is
   * pointed at or has the focus, with null when no longer. */
  constructor(pane, { open, twin }) {
    this.pane = pane;
    this.title = element("h2");
    this.figures = element("p", { className: "figures" });
    this.list = element("ul", { className: "grid", "aria-describedby": "keys" });
    this.cells = pane.seeds.map(() => element("li", { className: "cell" }));
    this.list.append(...this.cells);
    this.root = element("section", { className: "pane" }, this.title, this.figures, this.list);
    this.buttons = pane.seeds.map(() => null);
    this.chosen = null;
    this.columns = 1;
    this.open = open;
    this.twin = twin;
    this.list.addEventListener("keydown", (event) => this.move(event));
    pane.place = (index) => this.place(index);
    this.tell(false);
  }

  /** Puts a picture where its placeholder is. */
  place(index) {
    const picture = this.pane.pictures[index];
    const image = element("img", {
      src: picture.url,
      alt: [`Seed ${picture.seed}`, picture.says, this.pane.name].filter(Boolean).join(", "),
      className: this.pixelated ? "pixels" : "",
    });
    const button = element("button", { type: "button", className: "picture" }, image);
    button.addEventListener("click", () => this.open(this, index));
    button.addEventListener("focus", () => {
      this.chosen = index;
      this.setStop();
    });
    for (const name of ["focus", "pointerenter"]) {
      button.addEventListener(name, () => this.twin(index));
    }
    for (const name of ["blur", "pointerleave"]) {
      button.addEventListener(name, () => this.twin(null));
    }
    this.buttons[index] = button;
    this.cells[index].replaceChildren(button);
    this.setStop();
  }

  get pixelated() {
    return Math.max(...this.pane.model.size) <= SMALL;
  }

  /** Title and figures, as far as they are known. */
  tell(busy) {
    const { pane } = this;
    const batch = pane.batch > 1 ? `, batches of up to ${pane.batch}` : "";
    this.title.replaceChildren(
      element("span", { textContent: pane.name }),
      element("small", { textContent: `${pane.effort}${batch}` }),
    );
    this.list.setAttribute("aria-label", `${pane.name}: ${pane.seeds.length} places`);
    this.list.setAttribute("aria-busy", String(busy));
    this.figures.replaceChildren();
    if (!pane.made) return;
    this.figures.append(
      element("b", { textContent: milliseconds(pane.networkMs / pane.made) }),
      " per image in the network",
    );
    if (!pane.wallMs) return;
    this.figures.append(
      element("br"),
      element("b", { textContent: milliseconds(pane.wallMs / pane.made) }),
      " per image in all, with queue and transfer",
    );
  }

  /** The Tab key stops once: at the picture that had the focus last, or else at the first. */
  setStop() {
    const stop = this.chosen ?? this.buttons.findIndex(Boolean);
    for (const [at, button] of this.buttons.entries()) {
      if (button) button.tabIndex = at === stop ? 0 : -1;
    }
  }

  move(event) {
    const index = this.buttons.indexOf(document.activeElement);
    const target = {
      ArrowLeft: index - 1,
      ArrowRight: index + 1,
      ArrowUp: index - this.columns,
      ArrowDown: index + this.columns,
      Home: 0,
      End: this.buttons.length - 1,
    }[event.key];
    if (index < 0 || target === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // the page would scroll
    this.buttons[target]?.focus();
  }

  mark(index) {
    for (const [at, cell] of this.cells.entries()) cell.classList.toggle("twin", at === index);
  }

  /** Sizes of the grid for a place of this width and height, in pixels; of ``wanted`` columns. */
  fit(width, height, wanted = 0) {
    const count = this.cells.length;
    const { columns, cell } = columnsFor(width, height, count, this.pane.model.size, wanted);
    this.columns = columns;
    this.list.style.setProperty("--columns", columns);
    this.list.style.setProperty("--cell", `${cell}px`);
    const [rows, across] = this.pane.model.size;
    this.list.style.setProperty("--shape", `${across} / ${rows}`);
  }
}

/** The columns that show all pictures at once as large as can be; where they would be too small,
 * or no height is given, as many as the width takes, and the page scrolls. The pixels of small
 * images are squares of whole pixels of the screen. */
export function columnsFor(width, height, count, [rowsPixels, columnsPixels], wanted) {
  const least = width < 240 ? 72 : 96;
  const shape = rowsPixels / columnsPixels;
  const most = columnsPixels <= SMALL ? 288 : 512;
  const sized = (columns) => Math.floor((width - GAP * (columns - 1)) / columns);
  let best = { columns: 1, cell: 0, score: -1 };
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const high = (height - GAP * (rows - 1)) / rows / shape;
    const cell = Math.min(sized(columns), Math.floor(high), most);
    const score = cell * (count % columns ? 0.9 : 1); // whole rows look better
    if (score > best.score) best = { columns, cell, score };
  }
  if (wanted) {
    best = { columns: wanted, cell: Math.min(sized(wanted), most) };
  } else if (best.cell < least) {
    let columns = Math.max(1, Math.min(count, Math.floor((width + GAP) / (least + GAP))));
    while (columns > 2 && count % columns && count % (columns - 1) === 0) columns--;
    best = { columns, cell: Math.min(sized(columns), most) };
  }
  if (columnsPixels <= SMALL && best.cell >= 2 * columnsPixels) {
    best.cell -= ((best.cell * devicePixelRatio) % columnsPixels) / devicePixelRatio;
  }
  return best;
}
