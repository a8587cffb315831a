"""The peer of checkpoint.ts: torch.distributed.checkpoint's async_save, on a thread or in a process, its save, and torch.save with fsync, beside a
training step (a product of matrices and AdamW). Reads "save KIND DIR" line by line; answers with a JSON line: seconds inside async_save, seconds that steps lost until it
was written, seconds until then. The first save of each kind warms its buffers up. End of input ends it."""
import argparse, json, os, shutil, statistics, sys, time
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

args = argparse.ArgumentParser()
for name in ("--tensors", "--elements", "--size", "--port"):
    args.add_argument(name, type=int, required=True)
args = args.parse_args()


def main():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=0, world_size=1)
    params = [torch.nn.Parameter(torch.randn(args.elements)) for _ in range(args.tensors)]
    for param in params:
        param.grad = torch.randn(args.elements) * 1e-3
    optimizer = torch.optim.AdamW(params, fused=True)
    a, b = torch.randn(args.size, args.size), torch.randn(args.size, args.size)

    def step():
        start = time.perf_counter()
        a @ b
        optimizer.step()
        return time.perf_counter() - start

    step()
    moments = [optimizer.state[param] for param in params]
    state = {
        "params": {str(i): param.detach() for i, param in enumerate(params)},
        "first": {str(i): moment["exp_avg"] for i, moment in enumerate(moments)},
        "second": {str(i): moment["exp_avg_sq"] for i, moment in enumerate(moments)},
    }
    kinds = {"thread": AsyncCheckpointerType.THREAD, "process": AsyncCheckpointerType.PROCESS}
    stagers = {}
    for line in sys.stdin:
        _, kind, folder = line.split()
        if kind in kinds and kind not in stagers:
            stagers[kind] = DefaultStager(StagingOptions(False, kind == "process", False, False))
        shutil.rmtree(folder, ignore_errors=True)
        base = statistics.median(step() for _ in range(7))
        start = time.perf_counter()
        if kind not in kinds:
            if kind == "dcp":
                dcp.save(state, checkpoint_id=folder)
            else:
                os.makedirs(folder)
                with open(os.path.join(folder, "state.pt"), "wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
            seconds = time.perf_counter() - start
            print(json.dumps({"stall": seconds, "lost": seconds, "total": seconds}), flush=True)
            continue
        future = dcp.async_save(state, checkpoint_id=folder, async_checkpointer_type=kinds[kind], async_stager=stagers[kind])
        stall, lost = time.perf_counter() - start, 0.0
        future = getattr(future, "upload_completion", future)
        while not future.done():
            lost += max(0.0, step() - base)
        future.result()
        print(json.dumps({"stall": stall, "lost": lost, "total": time.perf_counter() - start}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
