"""SiD, SiDA or SiD2A on an EDM teacher; without a name, on the digits that ship.

    ray job submit --working-dir . -- python sid_edm.py cifar10-cond-sid

The same as `sid-ray distill`. First a recipe, digits-sid where none is named, then fields
of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("digits-sid")
