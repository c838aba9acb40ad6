"""A worker process of `render`, with the arguments FOLDER TRAIN VAL SIZE WORKERS WORKER."""

import sys
from pathlib import Path

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.synthetic import SIDES, render_share

if __name__ == "__main__":
    train, val, size, workers, worker = (int(text) for text in sys.argv[2:])
    try:
        for name in SIDES:
            render_share(Path(sys.argv[1]), name, train=train, val=val, size=size, worker=worker, workers=workers)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
