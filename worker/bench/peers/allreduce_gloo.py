"""The peer of all-reduce.ts: torch.distributed's Gloo, float32 sum on loopback. One process a rank; each reads "reduce ELEMENTS REPS"
line by line on stdin, and rank 0 answers with a JSON line: the seconds of each repetition, of the slower rank, and the processor
seconds of all ranks together. End of input ends it."""
import argparse, json, os, sys, time
import torch, torch.distributed as dist

args = argparse.ArgumentParser()
for name in ("--rank", "--world-size", "--port"):
    args.add_argument(name, type=int, required=True)
args = args.parse_args()
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.port), "GLOO_SOCKET_IFNAME": "lo"}
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=args.rank, world_size=args.world_size)
for line in sys.stdin:
    _, elements, reps = line.split()
    x = torch.full((int(elements),), float(args.rank))
    seconds, processor = [], 0.0
    for _ in range(int(reps)):
        dist.barrier()
        start, used = time.perf_counter(), time.process_time()
        dist.all_reduce(x)
        elapsed = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        processor += time.process_time() - used
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
        seconds.append(elapsed.item())
    processor = torch.tensor(processor, dtype=torch.float64)
    dist.all_reduce(processor)
    if args.rank == 0:
        print(json.dumps({"seconds": seconds, "processorSeconds": processor.item()}), flush=True)
dist.destroy_process_group()
