"""SiD-LSG on Stable Diffusion; --data.source names the file of prompts.

    ray job submit --working-dir . -- python sid_lsg_sd.py sd15-lsg-kappa1.5 --data.source FILE

The same as `sid-ray distill`. First a recipe, sd15-lsg-kappa2 where none is named, then fields
of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("sd15-lsg-kappa2")
