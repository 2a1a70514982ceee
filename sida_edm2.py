"""SiD, SiDA or SiD2A on an EDM2 teacher of ImageNet-512.

    ray job submit --working-dir . -- python sida_edm2.py img512-xxl-sida

The same as `sid-ray distill`. First a recipe, img512-xs-sida where none is named, then fields
of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("img512-xs-sida")
