"""The page of a run's gallery: HTML with all pictures in it; a script of some lines moves the
slider, without it all sheets stand below one another.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from PIL import Image
from torch import Tensor

from sid_ray.commands.compare import Compared, best_value, curve, score_names_of, title_of
from sid_ray.commands.page import whole_page
from sid_ray.evaluation.gallery import NearImages, Picture, PictureRow, Ranking
from sid_ray.evaluation.pictures import to_picture
from sid_ray.metrics.names import bare, shown_score
from sid_ray.objectives.spec import objective_spec
from sid_ray.tracking.history import Point

LOSSLESS = 512 * 512  # pixels; larger pictures are WebP of good quality
QUALITY = 88
SMALL = 96  # pixels a side: enlarged without smoothing


@dataclass(frozen=True)
class Frame:
    """A contact sheet of the same seeds, at a number of images seen."""

    images_seen: int
    picture: Image.Image


@dataclass(frozen=True)
class Gallery:
    """What the page shows of a run.

    Attributes:
        images_seen: by the weights of all but the frames.
        by: what the rows of the grid differ in: class, prompt, or empty for nothing.
    """

    run: Compared
    images_seen: int
    frames: Sequence[Frame]
    by: str
    grid: Sequence[PictureRow]
    copies: NearImages
    rankings: Sequence[Ranking]


def data_uri(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    file = io.BytesIO()
    if is_small(picture):
        kind = "png"
        picture.save(file, "PNG", optimize=True)
    else:
        kind = "webp"
        picture.convert("RGB").save(file, "WEBP", quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def is_small(picture: Image.Image) -> bool:
    return picture.width * picture.height <= LOSSLESS


def image_tag(image: Tensor, words: str) -> str:
    """An image uint8 [C, H, W] with its words as alternative text."""
    pixelated = ' class="small"' if image.shape[-1] <= SMALL else ""
    text = escape(words, quote=True)
    return f'<img{pixelated} alt="{text}" title="{text}" src="{data_uri(to_picture(image))}">'


# Parts --------------------------------------------------------------------------------------------


def summary_line(found: Gallery) -> str:
    """What the run is, and how far it came."""
    run = found.run
    parts = [
        escape(objective_spec(run.config.objective.name).label),
        f"teacher <code>{escape(run.config.teacher.source)}</code>",
        f"{found.images_seen:,} images seen",
    ]
    for name in score_names_of([run])[:1]:
        if best := best_value(name, run.history[name]):
            value = shown_score(bare(name), best.value)
            parts.append(f"best {escape(bare(name))} {value} at {best.images_seen:,}")
    return f'<p class="summary">{" · ".join(parts)}</p>'


def slider(frames: Sequence[Frame], what: str) -> str:
    """The sheets, one at a time: a range that arrow keys move, and a button that plays them.

    ``what`` stays the same in all of them.
    """
    if not frames:
        return "<p>No sheet was kept, and no checkpoint.</p>"
    last = len(frames) - 1
    shown = "".join(map(frame_figure, frames))
    control = (
        f'<div class="control" hidden><button type="button" id="play">Play'
        f'</button><input type="range" id="seen" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="Images seen"><output id="at" for="seen"></output></div>'
    )
    told = f"<p>A place has the same {what} in all sheets.</p>"
    return f'{told}<div>{control}<div id="frames">{shown}</div></div>'


def frame_figure(frame: Frame) -> str:
    seen = f"{frame.images_seen:,} images seen"
    kind = "sheet small" if is_small(frame.picture) else "sheet"
    return (
        f'<figure class="frame" data-seen="{seen}"><img class="{kind}" '
        f'alt="Contact sheet at {seen}" src="{data_uri(frame.picture)}">'
        f"<figcaption>{seen}</figcaption></figure>"
    )


def grid_part(rows: Sequence[PictureRow]) -> str:
    """A row per class or prompt."""
    lines = []
    for row in rows:
        title = f"<h3>{escape(row.title)}</h3>" if row.title else ""
        images = "".join(image_tag(each.image, each.words) for each in row.pictures)
        large = " large" if row.pictures[0].image.shape[-1] > SMALL else ""
        lines.append(f'<div>{title}<div class="strip{large}">{images}</div></div>')
    return f'<div class="rows">{"".join(lines)}</div>'


def copies_part(copies: NearImages) -> str:
    """Made images, each before the training images that it is nearest to."""
    if copies.trouble:
        return f"<p>Not shown: {escape(copies.trouble)}</p>"
    cards = []
    for row in copies.rows:
        made, *real = row.pictures
        beside = "".join(figure(each, each.words.rpartition(", ")[2]) for each in real)
        cards.append(
            f'<div class="card">{figure(made, "made")}<span class="arrow" aria-hidden="true">→'
            f'</span>{beside}<p class="words">{escape(row.title)}</p></div>'
        )
    usual = (
        f"<p>Of the images that were looked at, those nearest to a training image come first. "
        f"Distances are of {escape(copies.space)} features; the nearest other image of a training "
        f"image is {copies.usual:.3g} away (median). A made image that is much nearer than that "
        "may be a copy.</p>"
    )
    return f'{usual}<div class="cards">{"".join(cards)}</div>'


def figure(picture: Picture, caption: str) -> str:
    return (
        f"<figure>{image_tag(picture.image, picture.words)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def ranking_part(ranking: Ranking) -> str:
    """Best and worst."""
    name = escape(ranking.score)
    parts = [f"<h2>Best and worst by {name}</h2>"]
    for title, pictures in (("Best", ranking.best), ("Worst", ranking.worst)):
        shown = "".join(figure(each, each.words) for each in pictures)
        parts.append(f'<h3>{title}</h3><div class="ranked">{shown}</div>')
    return "".join(parts)


def curves_part(run: Compared) -> str:
    """Scores over images seen."""
    drawn = [
        curve_in_words(curve([run], name, title_of(name)), name, run.history[name])
        for name in score_names_of([run])
    ]
    shown = "".join(drawn)
    return f'<h2>Scores</h2><div class="curves">{shown}</div>' if shown else ""


def curve_in_words(figure: str, name: str, points: Sequence[Point]) -> str:
    """A curve whose words say what it shows, and whose black is the text's colour."""
    first, last, best = points[0], points[-1], best_value(name, points) or points[-1]
    values = [shown_score(bare(name), each.value) for each in (first, last, best)]
    words = (
        f"{bare(name)} over images seen: {values[0]} at {first.images_seen:,}, {values[1]} at "
        f"{last.images_seen:,}, at best {values[2]} at {best.images_seen:,}"
    )
    labelled = figure.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)
    return labelled.replace("#000000", "currentColor").replace("#ffffff", "none")


# The page -----------------------------------------------------------------------------------------

STYLE = """\
:root { color-scheme: light dark; --soft: #4b5563; --mark: #0b6fa4 }
body { margin: 1.2rem auto }
h3 { font-size: .92rem; font-weight: 600; margin: .9rem 0 .3rem }
.summary, figcaption, .words { color: var(--soft) }
figure { margin: 0 } figcaption { font-size: .8rem; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; display: block; border-radius: 2px }
img.small { image-rendering: pixelated }
.sheet { width: min(100%, 46rem) }
.control { display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; margin: .6rem 0;
           position: sticky; top: 0; background: Canvas; padding: .4rem 0; z-index: 1 }
.control[hidden] { display: none }
.control input { flex: 1 1 12rem; min-width: 0; height: 2.2rem; accent-color: var(--mark) }
.control output { min-width: 11rem; font-variant-numeric: tabular-nums }
button { font: inherit; padding: .45rem 1rem; min-height: 2.75rem; border-radius: .4rem;
         border: 1px solid var(--soft); background: transparent; color: inherit; cursor: pointer }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
.strip { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 3px }
.rows { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
        gap: .4rem 1.6rem }
.strip img, .card img, .ranked img { width: 100% }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
         gap: 1.1rem }
.card { display: grid; grid-template-columns: 1fr auto 1fr 1fr 1fr; gap: .4rem; align-items: start }
.card .arrow { align-self: center; color: var(--soft) }
.card .words { grid-column: 1 / -1; margin: 0; font-size: .85rem }
.ranked { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .7rem }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
          gap: 1rem }
.curves svg { width: 100%; height: auto; fill: currentColor }
@media (prefers-color-scheme: dark) {
  :root { --soft: #9ca3af; --mark: #56b4e9 }
  body { color: #e5e7eb; background: #111827 } .control { background: #111827 }
}
@media (max-width: 40rem) { .strip.large { grid-template-columns: repeat(4, minmax(0, 1fr)) } }
"""
SCRIPT = """\
const frames = [...document.querySelectorAll(".frame")];
const seen = document.getElementById("seen"), at = document.getElementById("at");
const play = document.getElementById("play");
let timer = 0;
function show(i) {
  frames.forEach((frame, k) => { frame.hidden = k !== i; });
  at.textContent = frames[i].dataset.seen;
  seen.value = i;
  seen.setAttribute("aria-valuetext", frames[i].dataset.seen);
}
function stop() {
  clearInterval(timer); timer = 0;
  play.textContent = "Play";
}
if (seen) {
  document.querySelector(".control").hidden = false;
  document.querySelectorAll("#frames figcaption").forEach(each => { each.hidden = true; });
  seen.addEventListener("input", () => { stop(); show(+seen.value); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    play.textContent = "Stop";
    let next = +seen.value === frames.length - 1 ? 0 : +seen.value + 1;
    show(next);
    timer = setInterval(() => {
      next = +seen.value + 1;
      if (next >= frames.length) { stop(); return; }
      show(next);
    }, 700);
  });
  show(frames.length - 1);
}
"""
BODY = Template("""\
$summary
<h2>The same seeds over images seen</h2>$slider
$curves
<h2>$by</h2>$grid
<h2>Nearest training images</h2>$copies
$rankings
<script>$script</script>""")


def gallery_page(found: Gallery) -> str:
    """The whole page."""
    what = f"seed and {found.by}" if found.by else "seed"
    body = BODY.substitute(
        summary=summary_line(found),
        slider=slider(found.frames, what),
        curves=curves_part(found.run),
        by=f"By {found.by or 'seed'}",
        grid=grid_part(found.grid),
        copies=copies_part(found.copies),
        rankings="".join(map(ranking_part, found.rankings)),
        script=SCRIPT,
    )
    return whole_page(f"{found.run.name}: gallery", body, STYLE)
