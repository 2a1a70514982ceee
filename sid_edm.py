"""Entry script for `ray job submit --working-dir . -- python sid_edm.py digits-sid`.

The same as `sid-ray distill`: the first argument is a recipe, the rest overrides fields of its
config.
"""

import sys

from sid_ray.cli import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
