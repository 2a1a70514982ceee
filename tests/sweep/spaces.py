"""Search spaces for tests."""

from pathlib import Path

from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe
from sid_ray.sweep.results import SweepOrder
from sid_ray.sweep.space import Space
from sid_ray.sweep.space_file import parse_space, read_space_text

HEAD = """\
metric: FD-digits-cnn
budget: {images: 6400}
trials: 8
fields:
"""


def space_of(fields: str, head: str = HEAD) -> Space:
    """A space of some fields; the first stands in line 5."""
    return parse_space(head + fields, "space.yaml")


def order_in(folder, space: Space, text: str = "") -> SweepOrder:
    """A sweep called s over a space, in a folder of runs."""
    base = replace(recipe("digits-sida"), output__folder=str(folder))
    return SweepOrder("s", space, text, base, 1)


def read_space(path: Path) -> Space:
    """The space of a file."""
    return parse_space(read_space_text(path), str(path))
