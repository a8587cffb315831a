"""All models that ours are compared with; see reference.py for what is made and checked.

    parity.py shard FOLDER NAME...      FOLDER/NAME again as FOLDER/NAME-sharded, in several files with an index
    parity.py run FOLDER...             loads each folder by the class that its config.json names and prints a JSON line
                                        with what was missing; of inputs.safetensors it writes outputs.safetensors
    parity.py inputs FOLDER             what its tokenizer and its image processor make of texts and a picture, as JSON
"""

import sys
from pathlib import Path

import torch
import transformers as hf

from decoders import DECODERS
from exported import inputs, run
from reference import REFERENCES, check, make

ALL = {**REFERENCES, **DECODERS}

if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    command, root, *names = sys.argv[1:]
    if command == "run":
        for folder in (root, *names):
            run(Path(folder))
        sys.exit()
    if command == "inputs":
        inputs(Path(root))
        sys.exit()
    for name in names:
        if command == "shard":
            made = type(ALL[name].make()).from_pretrained(Path(root) / name)
            made.save_pretrained(Path(root) / f"{name}-sharded", max_shard_size="20KB")
        elif command == "make":
            (Path(root) / name).mkdir(parents=True, exist_ok=True)
            make(Path(root) / name, name, ALL[name])
        else:
            check(Path(root), name, ALL[name])
