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
    """Through the class that config.json names."""
    if (folder / "adapter_config.json").exists():
        return run_adapter(folder)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(hf, name).from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        outputs = OUTPUTS[name](model.eval(), load_file(folder / "inputs.safetensors"))
    save_file({key: value.contiguous() for key, value in outputs.items()}, folder / "outputs.safetensors")
    names = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    roles = ("bos_token_id", "eos_token_id", "pad_token_id")
    if model.can_generate():
        names["generates"] = [[getattr(config, role) for role in roles] for config in (model.config, model.generation_config)]
        names["ids"] = hf.AutoTokenizer.from_pretrained(folder)("a red circle moves left")["input_ids"]
    # Of BLIP-2's tower it knows no class.
    auto = None if name == "Blip2VisionModel" else type(hf.AutoModel.from_pretrained(folder)).__name__
    print(json.dumps({"class": auto, **names}))


def inputs(folder):
    """What AutoTokenizer makes of texts.json, and what the image processor makes of the picture in picture.safetensors."""
    texts = json.loads((folder / "texts.json").read_text())
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    said = {
        "plain": tokenizer(texts)["input_ids"],
        "padded": tokenizer(texts, padding="max_length", truncation=True)["input_ids"],
        "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(texts)["input_ids"]],
    }
    if (folder / "picture.safetensors").exists():
        picture = load_file(folder / "picture.safetensors")["picture"].numpy().astype("uint8")
        values = hf.AutoImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt")["pixel_values"]
        processor = hf.AutoProcessor.from_pretrained(folder)
        both = processor(text=texts, images=[picture], padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(both["pixel_values"], values)
        said["processed"] = both["input_ids"].tolist()
        pixels = {"pixels": values.permute(0, 2, 3, 1).contiguous()}
        save_file(pixels, folder / "pixels.safetensors")
    print(json.dumps(said))
