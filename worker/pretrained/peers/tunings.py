"""What peft makes of adapters that we wrote.

    tunings.py FOLDER    loads each FOLDER/adapters/NAME beside FOLDER/base, by peft's own classes

Of FOLDER/inputs.safetensors (`ids`, `present`, and the factors `weight` of the logits in a loss) it writes the logits of
the words, and the loss's gradients as `gradient.*` by the names that adapters are saved with, to NAME.safetensors.
"""

import sys
from pathlib import Path

import peft
import torch
import transformers as hf
from safetensors.torch import load_file, save_file


def saved_name(name):
    if name.startswith("prompt_encoder."):
        return "prompt_embeddings"
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def run(folder, adapter, x):
    base = hf.AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager")
    is_prompt = peft.PeftConfig.from_pretrained(adapter).is_prompt_learning
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=not is_prompt).eval()
    if is_prompt:  # which peft does not load to be trained
        model.prompt_encoder.requires_grad_(True)
    out = model(input_ids=x["ids"].long(), attention_mask=x["present"].long())
    logits = out.logits[:, -x["ids"].shape[1] :]
    (logits * x["weight"]).sum().backward()
    gradients = {f"gradient.{saved_name(name)}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    found = {"logits": logits.detach(), **gradients}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / f"{adapter.name}.safetensors")


if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    inputs = load_file(folder / "inputs.safetensors")
    for adapter in sorted((folder / "adapters").iterdir()):
        run(folder, adapter, inputs)
