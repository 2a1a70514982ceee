"""What processes of several ranks are forked from, once it is loaded: 5 CPU seconds each saved.

Loaded by multiprocessing's fork server, for trajectories.run_ranks.
"""

from sid_ray.distributed.deepspeed_private import import_deepspeed
from tests.support import trajectories  # noqa: F401

import_deepspeed()
