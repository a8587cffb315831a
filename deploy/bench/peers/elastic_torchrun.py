"""torchrun with two Gloo workers on the loopback that all-reduce in a loop; one of them is killed.

Prints one JSON line: seconds from kill -9 of worker 1 until both workers, started anew by torchrun, have finished a step
again; null where they have not within a minute.
"""

import json
import os
import signal
import time

from torchrun import two_workers

LIMIT_SECONDS = 60
WORKER = r"""
import os, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, log = dist.get_rank(), sys.argv[1]
x, step = torch.ones(1 << 18), 0
while True:
    dist.all_reduce(x)
    x /= dist.get_world_size()
    step += 1
    if step in (1, 2) or step % 20 == 0:
        with open(f"{log}/{rank}", "a") as f:
            f.write(f"{time.time()} {os.getpid()}\n")
    time.sleep(0.01)
"""


def rows(log, rank):
    try:
        with open(f"{log}/{rank}") as f:
            return [(float(a), int(b)) for a, b in (l.split() for l in f if l.endswith("\n"))]
    except FileNotFoundError:
        return []


def wait(condition):
    end = time.time() + LIMIT_SECONDS
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def trial():
    with two_workers(WORKER, max_restarts=3) as (_, folder):
        if not wait(lambda: rows(folder, 0) and rows(folder, 1)):
            return {"launched": False, "seconds": None}
        time.sleep(1)
        old = {rows(folder, rank)[0][1] for rank in (0, 1)}
        killed = time.time()
        os.kill(rows(folder, 1)[0][1], signal.SIGKILL)
        fresh = lambda rank: [at for at, pid in rows(folder, rank) if pid not in old]
        if not wait(lambda: all(fresh(rank) for rank in (0, 1))):
            return {"launched": True, "seconds": None}
        return {"launched": True, "seconds": max(min(fresh(rank)) for rank in (0, 1)) - killed}


print(json.dumps(trial()))
