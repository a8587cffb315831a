"""A peer of engine.ts: training steps of its three models in JAX on the CPU, or the GPU where its wheels are for one (jit, donated state). Shapes are those of
worker/bench/models.ts. With --precision bfloat16 operands of products are bfloat16. Commands and answers are those of
step_torch.py; XLA uses as many threads as the process has cores."""
import argparse, json, os, re, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("model", choices=["videobert", "clip", "qformer"])
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
options = parser.parse_args()
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))

import numpy as np, jax, jax.numpy as jnp

r = np.random.RandomState(0)
W = lambda *s: (r.randn(*s) * 0.02).astype("float32")
lin = lambda i, o: {"w": W(i, o), "b": np.zeros(o, "float32")}
nrm = lambda D: {"g": np.ones(D, "float32"), "b": np.zeros(D, "float32")}
narrow = jnp.bfloat16 if options.precision == "bfloat16" else jnp.float32
mm = lambda spec, a, b: jnp.einsum(spec, a.astype(narrow), b.astype(narrow)).astype(jnp.float32)


def block(D, cross=0):
    p = {"n1": nrm(D), "n2": nrm(D), "qkv": lin(D, 3 * D), "o": lin(D, D), "w1": lin(D, 4 * D), "w2": lin(4 * D, D)}
    if cross:
        p |= {"nc": nrm(D), "cq": lin(D, D), "ckv": lin(cross, 2 * D), "co": lin(D, D)}
    return p


L = lambda p, x: mm("...i,io->...o", x, p["w"]) + p["b"]


def N(p, x):
    m = x.mean(-1, keepdims=True)
    v = ((x - m) ** 2).mean(-1, keepdims=True)
    return (x - m) * jax.lax.rsqrt(v + 1e-5) * p["g"] + p["b"]


def att(q, k, v, H, mask=None):
    h = lambda x: x.reshape(*x.shape[:2], H, -1)
    q, k, v = h(q), h(k), h(v)
    a = mm("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        a = jnp.where(mask, a, -1e30)
    o = mm("bhqk,bkhd->bqhd", jax.nn.softmax(a, -1), v)
    return o.reshape(*o.shape[:2], -1)


def apply(p, x, H, mask=None, mem=None, nq=0):
    x = x + L(p["o"], att(*jnp.split(L(p["qkv"], N(p["n1"], x)), 3, -1), H, mask))
    if mem is not None:
        q = x[:, :nq]
        k, v = jnp.split(L(p["ckv"], mem), 2, -1)
        x = jnp.concatenate([q + L(p["co"], att(L(p["cq"], N(p["nc"], q)), k, v, H)), x[:, nq:]], 1)
    return x + L(p["w2"], jax.nn.gelu(L(p["w1"], N(p["n2"], x)), approximate=True))


ce = lambda z, y: -jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1).mean()
unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
gat = lambda x, p: jnp.take_along_axis(x, p[..., None], 1)
I = lambda *s: r.randint(0, 4096, s).astype("int32")
F = lambda *s: r.randn(*s).astype("float32")
R = lambda B, n, k: np.stack([r.permutation(n)[:k] for _ in range(B)]).astype("int32")


def videobert(D=256, V=4096, B=8):
    p = {"emb": W(V, D), "pos": W(520, D), "proj": lin(768, D), "vmask": W(D), "blocks": [block(D) for _ in range(4)],
         "norm": nrm(D), "lm": lin(D, V), "reg": lin(D, 768)}

    def loss(p, text, feats, tpos, tlab, vpos):
        v = L(p["proj"], feats).at[jnp.arange(B)[:, None], vpos].set(p["vmask"])
        x = jnp.concatenate([p["emb"][text], v], 1) + p["pos"]
        for b in p["blocks"]:
            x = apply(b, x, 4)
        x = N(p["norm"], x)
        return ce(L(p["lm"], gat(x[:, :128], tpos)), tlab) + ((L(p["reg"], gat(x[:, 128:], vpos)) - gat(feats, vpos)) ** 2).mean()

    return p, loss, (I(B, 128), F(B, 392, 768), R(B, 128, 20), I(B, 20), R(B, 392, 60))


def clip(D=192, B=16):
    p = {"patch": lin(768, D), "cls": W(1, 1, D), "vpos": W(50, D), "emb": W(4096, D), "tpos": W(32, D),
         "vb": [block(D) for _ in range(12)], "tb": [block(D) for _ in range(4)], "nv": nrm(D), "nt": nrm(D),
         "ov": lin(D, D), "ot": lin(D, D), "scale": np.float32(2.6593)}

    def loss(p, frames, text):
        x = frames.reshape(B * 8, 3, 7, 16, 7, 16).transpose(0, 2, 4, 1, 3, 5).reshape(B * 8, 49, 768)
        x = L(p["patch"], x)
        x = jnp.concatenate([jnp.broadcast_to(p["cls"], (B * 8, 1, D)), x], 1) + p["vpos"]
        for b in p["vb"]:
            x = apply(b, x, 3)
        v = unit(L(p["ov"], N(p["nv"], x[:, 0]).reshape(B, 8, -1).mean(1)))
        t = p["emb"][text] + p["tpos"]
        for b in p["tb"]:
            t = apply(b, t, 3)
        t = unit(L(p["ot"], N(p["nt"], t[:, -1])))
        z = jnp.exp(p["scale"]) * v @ t.T
        y = jnp.arange(B)
        return (ce(z, y) + ce(z.T, y)) / 2

    return p, loss, (F(B, 8, 3, 112, 112), I(B, 32))


def qformer(D=256, B=8):
    p = {"q": W(1, 32, D), "emb": W(4096, D), "pos": W(32, D), "blocks": [block(D, 1024) for _ in range(2)],
         "norm": nrm(D), "lm": lin(D, 4096)}
    m = np.tril(np.ones((64, 64), bool))
    m[:32, :32] = True

    def loss(p, feats, text, lab):
        x = jnp.concatenate([jnp.broadcast_to(p["q"], (B, 32, D)), p["emb"][text] + p["pos"]], 1)
        for b in p["blocks"]:
            x = apply(b, x, 4, m, feats, 32)
        return ce(L(p["lm"], N(p["norm"], x[:, 32:])), lab)

    return p, loss, (F(B, 257, 1024), I(B, 32), I(B, 32))


def adamw(loss):
    def step(s, *d):
        p, m, v, t = s
        l, g = jax.value_and_grad(loss)(p, *d)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        a, b = 1 - 0.9**t, 1 - 0.999**t
        p = jax.tree.map(lambda p, m, v: p * (1 - 1e-6) - 1e-4 * (m / a) / (jnp.sqrt(v / b) + 1e-8), p, m, v)
        return (p, m, v, t), l

    return jax.jit(step, donate_argnums=0)


def peak_bytes():
    """Of this program alone: the peak of getrusage begins with what the parent had."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024


params, loss, batch = {"videobert": videobert, "clip": clip, "qformer": qformer}[options.model]()
zeros = lambda: jax.tree.map(np.zeros_like, params)
step = adamw(loss)
state = jax.device_put((params, zeros(), zeros(), np.float32(0)))
batch = jax.device_put(batch)
for line in sys.stdin:
    seconds, cpu = [], time.process_time()
    for _ in range(int(line.split()[1])):
        start = time.perf_counter()
        state, value = step(state, *batch)
        value.block_until_ready()
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / len(seconds)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes(), "loss": float(value), "version": jax.__version__}), flush=True)
