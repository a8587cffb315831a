"""The peer of engine.ts: one training step of the same early-fusion model in PyTorch, float32 on all cores.
128 text and 392 visual tokens of dim 768 projected to D=256, L=4, H=4, FFN 4x, vocabulary 4096, batch 8; masked language
modelling on 20 positions and regression of 60 visual tokens; AdamW (fused). Reads commands line by line on stdin:
"step N" runs N steps and answers with a JSON line: the seconds each took, CPU seconds of all cores a step; end of input ends the process."""
import argparse, json, sys, time, torch, torch.nn as nn, torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.n1, self.n2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.w1, self.w2 = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def heads(self, x):
        B, S, D = x.shape
        return x.view(B, S, self.H, D // self.H).transpose(1, 2)

    def attention(self, q, k, v):
        B, S, D = q.shape
        y = F.scaled_dot_product_attention(self.heads(q), self.heads(k), self.heads(v))
        return y.transpose(1, 2).reshape(B, S, D)

    def forward(self, x):
        x = x + self.o(self.attention(*self.qkv(self.n1(x)).chunk(3, -1)))
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
        v = v.scatter(1, vpos[..., None].expand(-1, -1, D), self.vmask.expand(B, vpos.shape[1], D))
        x = torch.cat([self.emb(text), v], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        at = lambda x, p: x.gather(1, p[..., None].expand(-1, -1, x.shape[-1]))
        mlm = F.cross_entropy(self.lm(at(x[:, : self.T], tpos)).flatten(0, 1), tlab.flatten())
        return mlm + F.mse_loss(self.reg(at(x[:, self.T :], vpos)), at(feats, vpos))


def data(B=8):
    r = torch.Generator().manual_seed(0)
    pick = lambda n, k: torch.stack([torch.randperm(n, generator=r)[:k] for _ in range(B)])
    return (torch.randint(0, 4096, (B, 128), generator=r), torch.randn(B, 392, 768, generator=r), pick(128, 20),
            torch.randint(0, 4096, (B, 20), generator=r), pick(392, 60))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, batch = VideoBert(), data()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    run = torch.compile(model) if options.compile else model
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = run(*batch)
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / len(seconds)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "loss": loss.item(), "version": torch.__version__}), flush=True)
