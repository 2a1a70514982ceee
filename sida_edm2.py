r"""SiD, SiDA or SiD2A on an EDM2 teacher of ImageNet-512.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python sida_edm2.py img512-xxl-sida --output.folder s3://BUCKET/runs --data.source ...

`sid-ray submit` checks and sends the same. Here it is `sid-ray distill`: first a recipe,
img512-xs-sida where none is named, then fields of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("img512-xs-sida")
