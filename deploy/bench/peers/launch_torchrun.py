"""torchrun from its start to the first step of two Gloo workers on the loopback, as one JSON line: {"seconds": s}.

    python launch_torchrun.py bare|train|compile

`bare` adds a megabyte and trains nothing. `train` takes a step of DistributedDataParallel and AdamW: a transformer encoder
of the size of the preset `tiny` (width 32, 2 layers), on random tokens that are there already. `compile` puts
torch.compile around it, whose own cache is warm after the first call. null where there is no step within two minutes.
"""

import json
import os
import sys
import time

from torchrun import two_workers

LIMIT_SECONDS = 120
WORKER = r"""
import sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
kind, log = sys.argv[1:]
dist.init_process_group("gloo")
if kind == "bare":
    dist.all_reduce(torch.ones(1 << 18))
else:
    from torch import nn
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 128, batch_first=True, norm_first=True, activation="gelu")
    model = nn.Sequential(nn.Embedding(256, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 256))
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    step = torch.compile(model) if kind == "compile" else model
    tokens = torch.randint(256, (8, 48))
    loss = nn.functional.cross_entropy(step(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    optimizer.step()
with open(f"{log}/{dist.get_rank()}.part", "w") as f:
    f.write(str(time.time()))
import os
os.rename(f"{log}/{dist.get_rank()}.part", f"{log}/{dist.get_rank()}")
time.sleep(600)
"""


def launch(kind):
    started = time.time()
    with two_workers(WORKER, [kind]) as (process, folder):
        logs = [f"{folder}/{rank}" for rank in (0, 1)]
        while not all(map(os.path.exists, logs)):
            if process.poll() is not None or time.time() > started + LIMIT_SECONDS:
                return None
            time.sleep(0.005)
        return max(float(open(log).read()) for log in logs) - started


print(json.dumps({"seconds": launch(sys.argv[1])}))
