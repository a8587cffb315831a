"""What Hugging Face's transformers makes of a folder that we exported."""

import json

import torch
import transformers as hf
from safetensors.torch import load_file, save_file


def channels_first(images):
    return images.permute(0, 3, 1, 2)


def pooled(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def two_towers(model, x):
    images = model.get_image_features(pixel_values=channels_first(x["pixels"]))
    texts = model.get_text_features(input_ids=x["ids"].long())
    return {"images": unit(pooled(images)), "texts": unit(pooled(texts))}


def text_tower(model, x):
    out = model(input_ids=x["ids"].long())
    return {"texts": unit(out.text_embeds if "text_embeds" in out else out.pooler_output)}


def image_tower(model, x):
    return {"states": model(pixel_values=channels_first(x["pixels"])).last_hidden_state}


def decoder(model, x):
    return {"logits": model(input_ids=x["ids"].long(), attention_mask=x["present"].long()).logits}


def matching(model, x):
    both = dict(pixel_values=channels_first(x["pixels"]), input_ids=x["ids"].long(), attention_mask=x["present"].long())
    out = model(**both)
    return {"images": out.image_embeds, "texts": out.text_embeds}


OUTPUTS = {
    "CLIPModel": two_towers,
    "SiglipModel": two_towers,
    "CLIPTextModelWithProjection": text_tower,
    "SiglipTextModel": text_tower,
    "CLIPVisionModel": image_tower,
    "Blip2VisionModel": image_tower,
    "Blip2ForImageTextRetrieval": matching,
    "LlamaForCausalLM": decoder,
    "OPTForCausalLM": decoder,
}


def run_adapter(folder):
    """Beside the language model that is exported next to it."""
    import peft

    base = hf.AutoModelForCausalLM.from_pretrained(folder.parent / "language")
    model = peft.PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        outputs = decoder(model.eval(), load_file(folder / "inputs.safetensors"))
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / "outputs.safetensors")
    print(json.dumps({"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}))


def run(folder):
    """Through the class that config.json names; a tokenizer beside it through AutoTokenizer."""
    if (folder / "adapter_config.json").exists():
        return run_adapter(folder)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(hf, name).from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        outputs = OUTPUTS[name](model.eval(), load_file(folder / "inputs.safetensors"))
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / "outputs.safetensors")
    names = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    words = None
    if (folder / "tokenizer.json").exists():
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        words = tokenizer("a red circle moves left", add_special_tokens=False)["input_ids"]
    # Of BLIP-2's tower it knows no class.
    auto = None if name == "Blip2VisionModel" else type(hf.AutoModel.from_pretrained(folder)).__name__
    print(json.dumps({"class": auto, "words": words, **names}))
