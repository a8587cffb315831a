"""Small randomly initialised decoders of Hugging Face's transformers, as files that ours are compared with.

    decoders.py make FOLDER NAME...            one folder a model, as reference.py tells, and generated.json
    decoders.py lora FOLDER                    a LLaMA with an adapter of peft
    decoders.py check-lora FOLDER ADAPTER      loads ADAPTER, a folder of ours, beside FOLDER/base, and compares
    decoders.py filter                         logits before and after transformers' warpers; prints JSON
    decoders.py blocks FOLDER                  random quantised blocks TYPE.bin and what gguf-py makes of them, TYPE.f32
    decoders.py gguf FILE                      greedy text of a GGUF file's model; prints JSON

generated.json holds what `generate` made of prompts of different lengths.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

from reference import Reference, backward, difference, make, randomise, read

WIDTH, WORDS, BATCH, LENGTH, SOFT = 24, 37, 3, 9, 2
EAGER = dict(attn_implementation="eager")
LLAMA = dict(
    vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=40, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0, **EAGER
)
OPT = dict(
    vocab_size=WORDS, hidden_size=WIDTH, ffn_dim=40, num_attention_heads=3, max_position_embeddings=40, dropout=0.0,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, **EAGER,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
MODELS = {
    "llama-grouped": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
    ),
    "llama-plain": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=False)
    ),
    "llama-tied": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**LLAMA, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=LLAMA3)
    ),
    "llama-linear": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **LLAMA, num_hidden_layers=2, num_attention_heads=3, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
        )
    ),
    "opt-pre": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, num_hidden_layers=6, do_layer_norm_before=True)),
    "opt-post": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**OPT, num_hidden_layers=2, do_layer_norm_before=False, word_embed_proj_dim=16)
    ),
}


def inputs():
    """Rows padded in front, not at all, and behind; two tokens of each are soft; padding and soft ones have no label."""
    at = torch.arange(LENGTH)[None]
    present = ((at >= torch.tensor([[3], [0], [0]])) & (at < torch.tensor([[LENGTH], [LENGTH], [6]]))).long()
    ids = torch.randint(5, WORDS, (BATCH, LENGTH))
    soft_rows = torch.full((BATCH, LENGTH), -1)
    soft_rows[:, 4], soft_rows[:, 3] = 0, 1
    labels = torch.where((present == 1) & (soft_rows < 0), ids, -100)
    labels[:, 5] = -100
    return dict(ids=ids, present=present, softRows=soft_rows, softIds=torch.randint(5, WORDS, (BATCH, SOFT)), labels=labels)


def outputs(model, x):
    """The soft tokens are words, twice as large: their gradient reaches the table of words."""
    embed = model.get_input_embeddings()
    embedded, soft = embed(x["ids"]), 2 * embed(x["softIds"])
    for row in range(BATCH):
        for column in range(LENGTH):
            if x["softRows"][row, column] >= 0:
                embedded = embedded.clone()
                embedded[row, column] = soft[row, x["softRows"][row, column]]
    plain = model(input_ids=x["ids"], attention_mask=x["present"], output_hidden_states=True)
    spliced = model(inputs_embeds=embedded, attention_mask=x["present"], labels=x["labels"])
    shown = lambda y: torch.where(x["present"][..., None] == 1, y, torch.zeros(()))
    return {
        "logits": shown(spliced.logits),
        "loss": spliced.loss.reshape(1),
        "plain": shown(plain.logits),
        **{f"states.{i}": shown(state) for i, state in enumerate(plain.hidden_states[:-1])},
    }


# Their own loss of the labels is an output too.
DECODERS = {
    name: Reference(make_model, inputs, outputs, lambda key: key in ("logits", "loss")) for name, make_model in MODELS.items()
}


def generated(model):
    prompts = [torch.randint(5, WORDS, (length,)).tolist() for length in (7, 3, 5, 1)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])

    def run(**options):
        out = model.generate(
            ids, attention_mask=mask, pad_token_id=0, return_dict_in_generate=True, output_scores=True, do_sample=False, **options
        )
        # `sequences_scores` is of float32, as ours.
        scores = out.sequences_scores.tolist() if "sequences_scores" in out and out.sequences_scores is not None else None
        return dict(options=options, rows=out.sequences[:, longest:].tolist(), scores=scores)

    free = run(max_new_tokens=12, eos_token_id=None)
    # An end that some rows meet early.
    ends = list(dict.fromkeys([free["rows"][0][4], free["rows"][1][2], 3]))[:2]
    cases = [free, run(max_new_tokens=12, eos_token_id=ends[:1]), run(max_new_tokens=10, eos_token_id=ends)]
    for beams, penalty, early, eos in (
        (3, 1.0, False, ends[:1]), (3, 0.0, True, ends[:1]), (2, 2.0, "never", ends), (4, -1.0, False, ends), (2, 1.0, True, ends[:1]),
    ):
        cases.append(run(max_new_tokens=12, eos_token_id=eos, num_beams=beams, length_penalty=penalty, early_stopping=early))
    return dict(prompts=prompts, cases=cases)


def lora(folder):
    import peft

    torch.manual_seed(5)
    base = MODELS["llama-grouped"]().eval()
    randomise(base)
    base.save_pretrained(folder / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder / "adapter")
    x = inputs()
    backward(folder, x, outputs(model, x), DECODERS["llama-grouped"].weighted)
    save_file(
        {name.replace(".default", ""): parameter.grad.contiguous() for name, parameter in model.named_parameters() if "lora_" in name},
        folder / "gradients.safetensors",
    )


def check_lora(folder, adapter):
    import peft

    base = hf.LlamaForCausalLM.from_pretrained(folder / "base", **EAGER)
    x, wanted = read(folder)
    with torch.no_grad():
        found = outputs(peft.PeftModel.from_pretrained(base, adapter).eval(), x)
    print(json.dumps({"difference": difference(found, wanted)}))


def filtered():
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(3)
    cases = []
    for temperature, top_k, top_p in ((1.0, None, 0.9), (0.7, 50, 1.0), (1.3, 20, 0.8), (0.2, None, 0.5), (2.0, 5, 0.01), (1.0, 500, 0.95)):
        logits = torch.randn(1, 200) * 3
        kept = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k is not None:
            kept = TopKLogitsWarper(top_k)(None, kept)
        if top_p < 1:
            kept = TopPLogitsWarper(top_p)(None, kept)
        finite = [value if value != float("-inf") else None for value in kept[0].tolist()]
        cases.append(dict(temperature=temperature, topK=top_k, topP=top_p, logits=logits[0].tolist(), kept=finite))
    print(json.dumps(cases))


def blocks(folder):
    import gguf
    import numpy as np

    rng = np.random.default_rng(2)
    # Where the blocks' float16 numbers stand: bits drawn at random would be infinite now and then.
    halves = dict(F16=[0], Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208])
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        data = rng.integers(0, 256, (50, size), dtype=np.uint8)
        if name in ("F32", "BF16"):
            values = rng.normal(size=50).astype(np.float32).view(np.uint32)
            data = (values if name == "F32" else (values >> 16).astype(np.uint16)).view(np.uint8).reshape(50, size)
        for at in halves.get(name, []):
            data[:, at : at + 2] = rng.normal(size=50).astype(np.float16).view(np.uint8).reshape(50, 2)
        (folder / f"{name}.bin").write_bytes(data.tobytes())
        (folder / f"{name}.f32").write_bytes(gguf.quants.dequantize(data, kind).astype(np.float32).tobytes())


def gguf(file):
    folder, name = os.path.split(file)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    cases = []
    for text in ("The capital of France is", "Once upon a time, in 1984,"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0)
        made = out[0, ids.shape[1] :].tolist()
        cases.append(dict(text=text, ids=ids[0].tolist(), made=made, continuation=tokenizer.decode(made)))
    messages = [{"role": "user", "content": "Name a colour."}]
    print(json.dumps(dict(cases=cases, chat=tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))))


if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    command, *rest = sys.argv[1:]
    torch.set_num_threads(2 if command == "gguf" else 1)
    if command == "make":
        for name in rest[1:]:
            folder = Path(rest[0]) / name
            folder.mkdir(parents=True, exist_ok=True)
            model = make(folder, name, DECODERS[name])
            (folder / "generated.json").write_text(json.dumps(generated(model)))
    elif command == "lora":
        lora(Path(rest[0]))
    elif command == "check-lora":
        check_lora(Path(rest[0]), rest[1])
    elif command == "blocks":
        blocks(Path(rest[0]))
    elif command == "filter":
        filtered()
    else:
        gguf(rest[0])
