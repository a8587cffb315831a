"""Folders of released models: their config.json, and their tensors' names and shapes without values (sparse files).

    released.py FOLDER
"""

import json
import os
import struct
import sys

import torch
import transformers as hf
from transformers.core_model_loading import revert_weight_conversion

LLAMA_2_7B = dict(rms_norm_eps=1e-5, max_position_embeddings=4096)


def released():
    """The configs as they are published; what is not given is the class's own default, as there."""
    llama = lambda **more: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_2_7B, **more))
    yield "Llama-2-7b-chat-hf", llama
    yield "Llama-2-7b-hf", llama
    yield "vicuna-7b-v1.5", llama
    yield "opt-2.7b", lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=2560,
            word_embed_proj_dim=2560,
            ffn_dim=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            vocab_size=50272,
        )
    )
    yield "blip2-itm-vit-g", lambda: hf.Blip2ForImageTextRetrieval(
        hf.Blip2Config(qformer_config=dict(vocab_size=30523, use_qformer_text_input=True))
    )
    yield "flava-full", lambda: hf.FlavaForPreTraining(hf.FlavaConfig())
    yield "Video-LLaVA-7B-hf", lambda: hf.VideoLlavaForConditionalGeneration(
        hf.VideoLlavaConfig(
            vision_config=hf.CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=14,
            ),
            text_config=hf.LlamaConfig(vocab_size=32064, **LLAMA_2_7B),
        )
    )


def leave_out_defaults(file):
    """Released files have a nested language model without what is as its class has it."""
    with open(file) as opened:
        config = json.load(opened)
    defaults = hf.LlamaConfig().to_dict()
    text = config.get("text_config", {})
    if text.get("model_type") == "llama":
        keep = lambda key, value: key == "model_type" or key not in defaults or value != defaults[key]
        config["text_config"] = {key: value for key, value in text.items() if keep(key, value)}
        with open(file, "w") as opened:
            json.dump(config, opened)


def main(root):
    for name, make in released():
        with torch.device("meta"):
            model = make()
        folder = os.path.join(root, name)
        model.config.save_pretrained(folder)
        leave_out_defaults(os.path.join(folder, "config.json"))
        header, at = {}, 0
        # The names that save_pretrained gives.
        for key, tensor in revert_weight_conversion(model, model.state_dict()).items():
            end = at + 2 * tensor.numel()
            header[key] = dict(dtype="F16", shape=list(tensor.shape), data_offsets=[at, end])
            at = end
        text = json.dumps(header).encode()
        with open(os.path.join(folder, "model.safetensors"), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)


main(sys.argv[1])
