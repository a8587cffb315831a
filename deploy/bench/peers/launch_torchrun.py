"""torchrun from its start to the first step of two Gloo workers on the loopback, as one JSON line: {"seconds": s}.

    python launch_torchrun.py bare|train|compile

`bare` adds a megabyte and trains nothing. `train` takes a step of DistributedDataParallel and AdamW: a transformer encoder
of the size of the preset `tiny` (width 32, 2 layers), on random tokens that are there already. `compile` puts
torch.compile around it, whose own cache is warm after the first call. null where there is no step within two minutes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

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
    folder = tempfile.mkdtemp()
    with open(folder + "/worker.py", "w") as f:
        f.write(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", folder + "/worker.py", kind, folder]
    env = dict(os.environ, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    started = time.time()
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    logs = [f"{folder}/{rank}" for rank in (0, 1)]
    try:
        while not all(map(os.path.exists, logs)):
            if process.poll() is not None or time.time() > started + LIMIT_SECONDS:
                return None
            time.sleep(0.005)
        return max(float(open(log).read()) for log in logs) - started
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder)


print(json.dumps({"seconds": launch(sys.argv[1])}))
