"""A sweep: many runs of one recipe, with settings out of a search space.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python tune_sid.py tune_spaces/edm2-sida.yaml --concurrent 4 --output.folder s3://BUCKET/runs

The same as `sid-ray sweep`. First a search space, digits-sida where none is named, then what
`sid-ray sweep --help` lists. The same command goes on with a sweep that was stopped.
"""

import sys

from sid_ray.cli import main

if __name__ == "__main__":
    args = sys.argv[1:]
    named = bool(args) and not args[0].startswith("-")
    main(["sweep", *([] if named else ["digits-sida"]), *args])
