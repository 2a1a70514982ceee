"""Search spaces for tests."""

from sid_ray.sweep.space import Space
from sid_ray.sweep.space_file import parse_space

HEAD = """\
metric: FD-digits-cnn
budget: {images: 6400}
trials: 8
fields:
"""


def space_of(fields: str, head: str = HEAD) -> Space:
    """A space of some fields; the first stands in line 5."""
    return parse_space(head + fields, "space.yaml")
