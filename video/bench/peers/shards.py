"""A peer of shards.ts: (picture, caption) samples out of shards, shuffled, batch 64, through a PyTorch DataLoader.
Usage: shards.py webdataset|mds FOLDER bytes|rgb WORKERS EPOCHS; `shards.py convert TAR_FOLDER MDS_FOLDER` writes MDS.
Each line on stdin asks for a pass of so many epochs over all samples; the answer is a JSON line with its seconds, the CPU seconds of
all processes, and what came: how many samples, the hash of the sorted captions, the sum of all bytes or pixels
(the sum only for the command "check")."""
import glob, hashlib, importlib.util, io, json, os, sys, time, types, warnings

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

# mosaicml-streaming imports these at load time; nothing here uses them.
NEED = {
    "torchvision.datasets": ["VisionDataset"],
    "torchvision.transforms.functional": ["to_tensor"],
    "transformers.feature_extraction_utils": ["BatchFeature"],
    "transformers.tokenization_utils_base": ["BatchEncoding"],
    "transformers.models.auto.tokenization_auto": ["AutoTokenizer"],
}
for top in ("torchvision", "transformers"):
    if importlib.util.find_spec(top) is not None:
        continue
    for module in [m for m in NEED if m.startswith(top)]:
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            name = ".".join(parts[:k])
            sys.modules.setdefault(name, types.ModuleType(name)).__path__ = []
        for name in NEED[module]:
            setattr(sys.modules[module], name, type(name, (), {}))


def rgb(jpeg):
    import numpy
    from PIL import Image

    return torch.from_numpy(numpy.array(Image.open(io.BytesIO(jpeg)).convert("RGB")))


def collate(batch):
    pictures = [sample[0] for sample in batch]
    return (torch.stack(pictures) if torch.is_tensor(pictures[0]) else pictures), [sample[1] for sample in batch]


def same(jpeg):
    return jpeg


def text(caption):
    return caption.decode()


def convert(tars, out):
    import webdataset
    from streaming import MDSWriter

    with MDSWriter(out=out, columns={"jpg": "bytes", "txt": "str"}, size_limit=1 << 24) as writer:
        shards = sorted(glob.glob(tars + "/*.tar"))
        for jpeg, caption in webdataset.WebDataset(shards, shardshuffle=False).to_tuple("jpg", "txt"):
            writer.write({"jpg": jpeg, "txt": caption.decode()})


def dataset(peer, folder, mode, epochs):
    decode = rgb if mode == "rgb" else same
    if peer == "webdataset":
        import webdataset

        shards = sorted(glob.glob(folder + "/*.tar"))
        source = webdataset.WebDataset(shards, shardshuffle=10, nodesplitter=None, seed=1)
        return source.repeat(epochs).shuffle(1000).to_tuple("jpg", "txt").map_tuple(decode, text)
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Pictures(StreamingDataset):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return decode(sample["jpg"]), sample["txt"]

    size = sum(shard["samples"] for shard in json.load(open(folder + "/index.json"))["shards"])
    return Pictures(
        local=folder, shuffle=True, batch_size=64, shuffle_seed=1, num_canonical_nodes=1, epoch_size=epochs * size
    )


def cpu_seconds():
    """Of this process and those it has started, as far as they live."""
    total = time.process_time()
    children, seen = [os.getpid()], set()
    while children:
        pid = children.pop()
        for task in glob.glob(f"/proc/{pid}/task/*/children"):
            try:
                found = [int(child) for child in open(task).read().split()]
            except OSError:
                continue
            for child in found:
                if child in seen:
                    continue
                seen.add(child)
                children.append(child)
                try:
                    fields = open(f"/proc/{child}/stat").read().split(") ")[1].split(" ")
                except OSError:
                    continue
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main():
    if sys.argv[1] == "convert":
        return convert(*sys.argv[2:])
    peer, folder, mode, workers, epochs = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    loader = torch.utils.data.DataLoader(
        dataset(peer, folder, mode, epochs),
        batch_size=64,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
        prefetch_factor=4,
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        check = line.strip() == "check"
        captions, total, count = [], 0, 0
        wall, cpu = time.perf_counter(), cpu_seconds()
        for pictures, texts in loader:
            count += len(texts)
            if check:
                captions += texts
                total += int(pictures.sum(dtype=torch.int64)) if mode == "rgb" else sum(map(sum, pictures))
        taken = {"seconds": time.perf_counter() - wall, "cpuSeconds": cpu_seconds() - cpu}
        digest = hashlib.sha256("\n".join(sorted(captions)).encode()).hexdigest()
        print(json.dumps({**taken, "count": count, "captions": digest, "sum": total}), flush=True)


if __name__ == "__main__":
    main()
