r"""SiD on flow-matching transformers (SANA, SD3, FLUX); --data.source names the file of prompts.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python sid_flow.py sana-600m-512-dit --output.folder s3://BUCKET/runs --data.source FILE

`sid-ray submit` checks and sends the same. Here it is `sid-ray distill`: first a recipe,
sana-600m-512-dit where none is named, then fields of its config to override.
"""

from sid_ray.cli import distill_script

if __name__ == "__main__":
    distill_script("sana-600m-512-dit")
