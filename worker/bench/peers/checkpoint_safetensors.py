"""The peer of checkpoint.ts in writing: safetensors' save_file and fsync, nothing beside it. Reads "write FILE" line by line; answers with a
JSON line: the seconds. End of input ends it."""
import argparse, json, os, sys, time
import numpy as np
from safetensors.numpy import save_file

args = argparse.ArgumentParser()
for name in ("--tensors", "--elements"):
    args.add_argument(name, type=int, required=True)
args = args.parse_args()
rng = np.random.default_rng(1)
state = {f"{kind}.{i}": rng.standard_normal(args.elements, dtype=np.float32) for kind in "abc" for i in range(args.tensors)}
for line in sys.stdin:
    _, path = line.split()
    start = time.perf_counter()
    save_file(state, path)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    print(json.dumps({"total": time.perf_counter() - start}), flush=True)
    os.remove(path)
