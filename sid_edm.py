r"""SiD, SiDA or SiD2A on an EDM teacher; without a name, on the digits that ship.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python sid_edm.py cifar10-cond-sid --output.folder s3://BUCKET/runs

`sid-ray submit` checks and sends the same. Here it is `sid-ray distill`: first a recipe,
digits-sid where none is named, then fields of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("digits-sid")
