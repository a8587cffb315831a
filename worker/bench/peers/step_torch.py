"""A peer of engine.ts: training steps of its three models in PyTorch, forward, backward and AdamW (fused).
Shapes are those of worker/bench/models.ts. With --precision bfloat16 the model runs under autocast. Reads commands line
by line on stdin: "step N" runs N steps and answers with a JSON line: the seconds each took, CPU seconds of all cores a
step; end of input ends the process."""
import argparse, json, re, sys, time, torch, torch.nn as nn, torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, D, H, cross=0):
        super().__init__()
        self.H = H
        self.n1, self.n2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.w1, self.w2 = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        if cross:
            self.nc, self.cq, self.ckv, self.co = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(cross, 2 * D), nn.Linear(D, D)

    def heads(self, x):
        B, S, D = x.shape
        return x.view(B, S, self.H, D // self.H).transpose(1, 2)

    def attention(self, q, k, v, mask=None):
        B, S, D = q.shape
        y = F.scaled_dot_product_attention(self.heads(q), self.heads(k), self.heads(v), attn_mask=mask)
        return y.transpose(1, 2).reshape(B, S, D)

    def forward(self, x, mask=None, memory=None, queries=0):
        x = x + self.o(self.attention(*self.qkv(self.n1(x)).chunk(3, -1), mask))
        if memory is not None:  # only the queries look at the frame features
            q = x[:, :queries]
            k, v = self.ckv(memory).chunk(2, -1)
            x = torch.cat([q + self.co(self.attention(self.cq(self.nc(q)), k, v)), x[:, queries:]], 1)
        return x + self.w2(F.gelu(self.w1(self.n2(x)), approximate="tanh"))


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.02)


class VideoBert(nn.Module):
    def __init__(self, D=256, L=4, H=4, V=4096, T=128, NV=392, DV=768):
        super().__init__()
        self.T = T
        self.emb, self.pos, self.proj, self.vmask = nn.Embedding(V, D), weight(T + NV, D), nn.Linear(DV, D), weight(D)
        self.blocks, self.norm = nn.ModuleList(Block(D, H) for _ in range(L)), nn.LayerNorm(D)
        self.lm, self.reg = nn.Linear(D, V), nn.Linear(D, DV)

    def forward(self, text, feats, tpos, tlab, vpos):
        B = text.shape[0]
        v = self.proj(feats)
        D = v.shape[-1]
        v = v.scatter(1, vpos[..., None].expand(-1, -1, D), self.vmask.to(v.dtype).expand(B, vpos.shape[1], D))
        x = torch.cat([self.emb(text), v], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        at = lambda x, p: x.gather(1, p[..., None].expand(-1, -1, x.shape[-1]))
        mlm = F.cross_entropy(self.lm(at(x[:, : self.T], tpos)).flatten(0, 1), tlab.flatten())
        return mlm + F.mse_loss(self.reg(at(x[:, self.T :], vpos)), at(feats, vpos))

    @staticmethod
    def data(r, B=8):
        pick = lambda n, k: torch.stack([torch.randperm(n, generator=r)[:k] for _ in range(B)])
        return (torch.randint(0, 4096, (B, 128), generator=r), torch.randn(B, 392, 768, generator=r), pick(128, 20),
                torch.randint(0, 4096, (B, 20), generator=r), pick(392, 60))


class Clip(nn.Module):
    def __init__(self, D=192, LV=12, LT=4, H=3, V=4096, T=32, px=112, p=16):
        super().__init__()
        n = (px // p) ** 2
        self.p = p
        self.patch, self.cls, self.vpos = nn.Linear(3 * p * p, D), weight(1, 1, D), weight(n + 1, D)
        self.emb, self.tpos = nn.Embedding(V, D), weight(T, D)
        self.vb, self.tb = nn.ModuleList(Block(D, H) for _ in range(LV)), nn.ModuleList(Block(D, H) for _ in range(LT))
        self.nv, self.nt, self.ov, self.ot = nn.LayerNorm(D), nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D)
        self.scale = nn.Parameter(torch.tensor(2.6593))

    def forward(self, frames, text):
        B, N, C, H, W = frames.shape
        p = self.p
        x = frames.view(B * N, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B * N, -1, C * p * p)
        x = self.patch(x)
        x = torch.cat([self.cls.expand(B * N, 1, -1), x], 1) + self.vpos
        for block in self.vb:
            x = block(x)
        v = F.normalize(self.ov(self.nv(x[:, 0]).view(B, N, -1).mean(1)), dim=-1)
        t = self.emb(text) + self.tpos
        for block in self.tb:
            t = block(t)
        t = F.normalize(self.ot(self.nt(t[:, -1])), dim=-1)
        z = self.scale.exp() * v @ t.T
        y = torch.arange(B)
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

    @staticmethod
    def data(r, B=16):
        return torch.randn(B, 8, 3, 112, 112, generator=r), torch.randint(0, 4096, (B, 32), generator=r)


class QFormer(nn.Module):
    def __init__(self, D=256, L=2, H=4, V=4096, NQ=32, T=32, DV=1024):
        super().__init__()
        self.NQ = NQ
        self.q, self.emb, self.pos = weight(1, NQ, D), nn.Embedding(V, D), weight(T, D)
        self.blocks, self.norm, self.lm = nn.ModuleList(Block(D, H, DV) for _ in range(L)), nn.LayerNorm(D), nn.Linear(D, V)
        mask = torch.tril(torch.ones(NQ + T, NQ + T)).bool()
        mask[:NQ, :NQ] = True
        self.register_buffer("mask", mask)

    def forward(self, feats, text, lab):
        B = text.shape[0]
        x = torch.cat([self.q.expand(B, -1, -1), self.emb(text) + self.pos], 1)
        for block in self.blocks:
            x = block(x, self.mask, feats, self.NQ)
        return F.cross_entropy(self.lm(self.norm(x[:, self.NQ :])).flatten(0, 1), lab.flatten())

    @staticmethod
    def data(r, B=8):
        return (torch.randn(B, 257, 1024, generator=r), torch.randint(0, 4096, (B, 32), generator=r),
                torch.randint(0, 4096, (B, 32), generator=r))


def peak_bytes():
    """Of this program alone: the peak of getrusage begins with what the parent had."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024


if __name__ == "__main__":
    models = {"videobert": VideoBert, "clip": Clip, "qformer": QFormer}
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=models)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device
    model = models[options.model]().to(device)
    batch = [part.to(device) for part in model.data(torch.Generator().manual_seed(0))]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    run = torch.compile(model) if options.compile else model
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
                loss = run(*batch)
            loss.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / len(seconds)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes(), "loss": loss.item(), "version": torch.__version__}), flush=True)
