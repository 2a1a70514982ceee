r"""SiD-LSG on Stable Diffusion; --data.source names the file of prompts.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python sid_lsg_sd.py sd15-lsg-kappa1.5 --output.folder s3://BUCKET/runs --data.source FILE

`sid-ray submit` checks and sends the same. Here it is `sid-ray distill`: first a recipe,
sd15-lsg-kappa2 where none is named, then fields of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("sd15-lsg-kappa2")
