"""How JAX asks cuDNN for fused attention: the custom calls of its forward and backward pass, lowered for CUDA without a GPU.

    pip install jax==0.10.2; python fused-attention-reference.py > fixtures/fused-attention.json
"""

import json
import re

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused

# Where there is no cuDNN its version cannot be asked; 9.8 is in CUDA 12.8.
fused.check_cudnn_version = lambda: 90800

CASES = {
    "plain": dict(query=(2, 4, 64, 32), key=(2, 4, 64, 32)),
    "cross": dict(query=(2, 4, 32, 64), key=(2, 4, 258, 64)),
    "grouped": dict(query=(1, 8, 16, 128), key=(1, 2, 48, 128)),
    "biased": dict(query=(2, 4, 64, 32), key=(2, 4, 64, 32), bias=(2, 1, 64, 64)),
    "masked": dict(query=(3, 2, 16, 40), key=(3, 2, 16, 40), bias=(1, 1, 16, 16)),
}


def calls(query, key, bias=None):
    given = [jnp.zeros(shape, jnp.bfloat16) for shape in (query, key, key, *([bias] if bias else []))]

    def attend(*given):
        scale = 1 / query[-1] ** 0.5
        return fused.dot_product_attention(*given[:3], given[3] if bias else None, scale=scale, qkv_layout="BNTH")

    def loss(*given):
        return attend(*given).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, argnums=tuple(range(len(given))))).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    found = []
    for line in text.splitlines():
        call = re.search(r"stablehlo\.custom_call @([^\s(]+)\(.*?\) \{(.*)\} : (.*)$", line)
        if call and "cudnn" in call[1]:
            target, attributes, types = call.groups()
            config = re.search(r'backend_config = "((?:[^"\\]|\\.)*)"', attributes)[1]
            layouts = {
                name: re.search(name + r" = \[(.*?)\](?=, |$)", attributes)[1]
                for name in ("operand_layouts", "result_layouts")
            }
            config = json.loads(re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), config))
            found.append(dict(target=target, config=config, types=types, **layouts))
    return found


print(json.dumps({name: dict(case, calls=calls(**case)) for name, case in CASES.items()}, indent=1))
