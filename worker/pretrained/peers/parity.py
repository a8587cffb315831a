"""All models that ours are compared with; see reference.py for what is made and checked."""

import sys
from pathlib import Path

import torch
import transformers as hf

from decoders import DECODERS
from reference import REFERENCES, check, make

ALL = {**REFERENCES, **DECODERS}

if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    command, root, *names = sys.argv[1:]
    for name in names:
        if command == "make":
            (Path(root) / name).mkdir(parents=True, exist_ok=True)
            make(Path(root) / name, name, ALL[name])
        else:
            check(Path(root), name, ALL[name])
