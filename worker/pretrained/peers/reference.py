"""Small randomly initialised models of Hugging Face's transformers, as files that ours are compared with.

    parity.py make FOLDER NAME...       one folder a model, as `Reference` below tells
    parity.py check FOLDER NAME...      loads FOLDER/NAME-exported, of ours, and compares; prints a JSON line each

A folder holds config.json and model.safetensors (save_pretrained), gradients/model.safetensors (the same names, the
gradient of the loss in place of each parameter) and reference.safetensors: `input.*`, `output.*` and `weight.*`, the
factors of outputs in the loss sum(output * weight).
"""

import json

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

WIDTH, HEADS, LAYERS, HIDDEN, WORDS, BATCH, LENGTH = 24, 3, 5, 40, 37, 3, 7
SIZES = dict(hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=LAYERS, intermediate_size=HIDDEN)
TEXT = dict(SIZES, vocab_size=WORDS, max_position_embeddings=11)
IMAGE = dict(SIZES, image_size=16, patch_size=4)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
QUERIES = 4


class Reference:
    """A model: how it is made, what goes in, and what comes out under which names; `weighted`: what is in the loss.

    Unless told otherwise all but hidden states, which have a dot in their names: their gradient is that of what follows.
    """

    def __init__(self, make, inputs, outputs, weighted=lambda name: "." not in name):
        self.make, self.inputs, self.outputs, self.weighted = make, inputs, outputs, weighted


def words(low=5):
    return torch.randint(low, WORDS, (BATCH, LENGTH))


def present():
    """Rows of different lengths, padded at their ends."""
    return (torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [4], [6]])).long()


def pixels(size=16):
    return torch.randn(BATCH, size, size, 3)


def channels_first(images):
    return images.permute(0, 3, 1, 2)


def states(name, hidden):
    """All but the last: whether that is before or after the final norm differs between versions."""
    return {f"{name}.{i}": state for i, state in enumerate(hidden[:-1])}


def bert_inputs():
    return dict(ids=words(), segments=torch.randint(0, 2, (BATCH, LENGTH)), present=present())


def bert_outputs(model, x):
    out = model(input_ids=x["ids"], token_type_ids=x["segments"], attention_mask=x["present"], output_hidden_states=True)
    # Padded queries are nobody's concern, and how they look at themselves differs between versions: all see the same keys.
    return {
        "logits": out.prediction_logits,
        "pair": out.seq_relationship_logits,
        **states("states", out.hidden_states),
    }


def visual_bert_inputs():
    return dict(
        ids=words(),
        segments=torch.randint(0, 2, (BATCH, LENGTH)),
        present=present(),
        regions=torch.randn(BATCH, 4, 10),
        regionsPresent=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
    )


def visual_bert_outputs(model, x):
    out = model(
        input_ids=x["ids"],
        token_type_ids=x["segments"],
        attention_mask=x["present"],
        visual_embeds=x["regions"],
        visual_attention_mask=x["regionsPresent"],
        output_hidden_states=True,
    )
    return {
        "logits": out.prediction_logits,
        "pair": out.seq_relationship_logits,
        **states("states", out.hidden_states),
    }


def vit_outputs(model, x):
    out = model(pixel_values=channels_first(x["pixels"]), output_hidden_states=True)
    return {"last": out.last_hidden_state, "pooled": out.pooler_output, **states("states", out.hidden_states)}


def clip_inputs():
    ids = words()
    ids[:, -1] = WORDS - 1  # the largest, where the older rule looks
    ids[1, 3] = ids[2, 5] = WORDS - 1
    return dict(ids=ids, present=present(), pixels=pixels())


def two_tower_outputs(model, x):
    out = model(
        input_ids=x["ids"],
        attention_mask=x.get("present"),
        pixel_values=channels_first(x["pixels"]),
        output_hidden_states=True,
    )
    return {
        "logits": out.logits_per_image,
        "imageEmbeddings": out.image_embeds,
        "textEmbeddings": out.text_embeds,
        "imageStates": out.vision_model_output.last_hidden_state,
        "textStates": out.text_model_output.last_hidden_state,
        **states("image", out.vision_model_output.hidden_states),
        **states("text", out.text_model_output.hidden_states),
    }


def clip_config(**text):
    return hf.CLIPConfig(
        text_config=dict(TEXT, **text), vision_config=dict(IMAGE, hidden_size=32, num_attention_heads=4), projection_dim=20
    )


def siglip_config(**image):
    vision = dict(IMAGE, **image)
    return hf.SiglipConfig(text_config=dict(TEXT, max_position_embeddings=LENGTH, projection_size=WIDTH), vision_config=vision)


def blip2_vision_config():
    return hf.Blip2VisionConfig(**IMAGE, attention_dropout=0.0)


def blip2_outputs(model, x):
    images = channels_first(x["pixels"])
    both = dict(pixel_values=images, input_ids=x["ids"], attention_mask=x["present"])
    contrast = model(**both)
    match = model(**both, use_image_text_matching_head=True)
    seen = model.vision_model(images, output_hidden_states=True)
    queries = model.qformer(
        model.query_tokens.expand(BATCH, -1, -1), encoder_hidden_states=seen.last_hidden_state, output_hidden_states=True
    )
    # Image-grounded generation: queries see queries, text sees queries and the text before it.
    count = QUERIES + LENGTH
    may = torch.ones(count, count).tril().bool()
    may[:QUERIES, :QUERIES] = True
    there = torch.cat([torch.ones(BATCH, QUERIES), x["present"]], 1).bool()
    mask = (may[None] & there[:, None])[:, None]
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    written = model.qformer(
        model.embeddings(input_ids=x["ids"], query_embeds=model.query_tokens.expand(BATCH, -1, -1)),
        query_length=QUERIES,
        attention_mask=bias,
        encoder_hidden_states=seen.last_hidden_state,
    )
    return {
        "contrast": contrast.logits_per_image,
        "imageEmbeddings": contrast.image_embeds,
        "textEmbeddings": contrast.text_embeds,
        "match": match.logits_per_image,
        "imageStates": seen.last_hidden_state,
        "written": written.last_hidden_state,
        # A group of layers ends at every second.
        "queries.2": queries.hidden_states[4],
        "queries": queries.last_hidden_state,
        **states("image", seen.hidden_states),
    }


def blip2_config():
    qformer = dict(
        TEXT, encoder_hidden_size=32, cross_attention_frequency=2, use_qformer_text_input=True, pad_token_id=0, **NO_DROPOUT
    )
    qformer["num_hidden_layers"] = 10
    return hf.Blip2Config(
        vision_config=dict(IMAGE, hidden_size=32, num_attention_heads=4),
        qformer_config=qformer,
        num_query_tokens=QUERIES,
        image_text_hidden_size=20,
        image_token_index=None,
    )


def flava_config():
    return hf.FlavaConfig(
        image_config=dict(IMAGE, qkv_bias=True, mask_token=True, **NO_DROPOUT),
        text_config=dict(TEXT, hidden_size=32, num_attention_heads=4, qkv_bias=True, pad_token_id=0, **NO_DROPOUT),
        multimodal_config=dict(SIZES, hidden_size=40, num_attention_heads=4, num_hidden_layers=3, qkv_bias=True, use_cls_token=True, **NO_DROPOUT),
        projection_dim=20,
        hidden_size=40,
    )


def flava_inputs():
    return dict(
        ids=words(), segments=torch.randint(0, 2, (BATCH, LENGTH)), present=present(), pixels=pixels(),
        maskedPatches=(torch.rand(BATCH, 16) < 0.4).long(),
    )


def flava_outputs(model, x):
    text = dict(input_ids=x["ids"], token_type_ids=x["segments"], attention_mask=x["present"])
    images = channels_first(x["pixels"])
    out = model(**text, pixel_values=images)
    masked = model(**text, pixel_values=images, bool_masked_pos=x["maskedPatches"].bool())
    return {
        "imageStates": out.image_embeddings,
        "textStates": out.text_embeddings,
        "jointStates": out.multimodal_embeddings,
        "imagePooled": out.image_output.pooler_output,
        "textPooled": out.text_output.pooler_output,
        "jointPooled": out.multimodal_output.pooler_output,
        "imageProjected": model.image_projection(out.image_embeddings),
        "textProjected": model.text_projection(out.text_embeddings),
        "maskedJointStates": masked.multimodal_embeddings,
        # In no output of theirs, but a parameter.
        "scale": model.logit_scale.reshape(1),
        **states("image", out.image_output.hidden_states),
        **states("text", out.text_output.hidden_states),
    }


IMAGE_ID, VIDEO_ID, FRAMES, PATCHES = 3, 4, 2, 16


def video_llava_config():
    vision = hf.CLIPVisionConfig(**dict(IMAGE, hidden_size=32, num_attention_heads=4))
    text = hf.LlamaConfig(**SIZES, vocab_size=WORDS, max_position_embeddings=128, tie_word_embeddings=False)
    return hf.VideoLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, video_token_index=VIDEO_ID,
        image_seq_length=PATCHES, video_seq_length=FRAMES * (PATCHES + 1),
    )


def video_llava_inputs():
    """A picture and a clip in every row, words before, between and after them, padding in front."""
    seen = [words()[:, :2], torch.full((BATCH, PATCHES), IMAGE_ID), words()[:, :1], torch.full((BATCH, FRAMES * (PATCHES + 1)), VIDEO_ID), words()]
    ids = torch.cat([torch.full((BATCH, 2), 1), *seen], 1)
    there = torch.ones_like(ids)
    there[0, :2] = there[2, :1] = 0
    return dict(ids=ids, present=there, pixels=pixels(), clips=torch.randn(BATCH, FRAMES, 16, 16, 3))


def video_llava_outputs(model, x):
    images, clips = channels_first(x["pixels"]), x["clips"].permute(0, 1, 4, 2, 3)
    out = model(input_ids=x["ids"], attention_mask=x["present"], pixel_values=images, pixel_values_videos=clips)
    shown = x["present"][..., None] == 1
    return {
        "logits": torch.where(shown, out.logits, torch.zeros(())),
        "images": model.model.get_image_features(pixel_values=images).pooler_output,
        "clips": model.model.get_video_features(pixel_values_videos=clips).pooler_output.reshape(BATCH, -1, WIDTH),
    }


REFERENCES = {
    "bert": Reference(
        lambda: hf.BertForPreTraining(hf.BertConfig(**TEXT, **NO_DROPOUT, pad_token_id=0)), bert_inputs, bert_outputs
    ),
    # A whole number of times as wide within.
    "bert-double": Reference(
        lambda: hf.BertForPreTraining(hf.BertConfig(**dict(TEXT, intermediate_size=2 * WIDTH), **NO_DROPOUT, pad_token_id=0)),
        bert_inputs,
        bert_outputs,
    ),
    "visual-bert": Reference(
        lambda: hf.VisualBertForPreTraining(hf.VisualBertConfig(**TEXT, **NO_DROPOUT, pad_token_id=0, visual_embedding_dim=10)),
        visual_bert_inputs,
        visual_bert_outputs,
    ),
    "vit": Reference(lambda: hf.ViTModel(hf.ViTConfig(**IMAGE, **NO_DROPOUT)), lambda: dict(pixels=pixels()), vit_outputs),
    "clip": Reference(lambda: hf.CLIPModel(clip_config(eos_token_id=WORDS - 1)), clip_inputs, two_tower_outputs),
    "clip-openai": Reference(
        lambda: hf.CLIPModel(clip_config(eos_token_id=2, hidden_act="gelu")), clip_inputs, two_tower_outputs
    ),
    "siglip": Reference(
        lambda: hf.SiglipModel(siglip_config()), lambda: dict(ids=words(), pixels=pixels()), two_tower_outputs
    ),
    # Patches that leave a border of pixels over.
    "siglip-border": Reference(
        lambda: hf.SiglipModel(siglip_config(image_size=18)), lambda: dict(ids=words(), pixels=pixels(18)), two_tower_outputs
    ),
    "blip-2": Reference(
        lambda: hf.Blip2ForImageTextRetrieval(blip2_config()),
        lambda: dict(ids=words(), present=present(), pixels=pixels()),
        blip2_outputs,
    ),
    "flava": Reference(lambda: hf.FlavaModel(flava_config()), flava_inputs, flava_outputs),
    "video-llava": Reference(
        lambda: hf.VideoLlavaForConditionalGeneration(video_llava_config()), video_llava_inputs, video_llava_outputs
    ),
}


def randomise(model):
    """Every parameter, biases and norms too: their defaults of 0 and 1 would hide errors."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == 1:
                parameter.fill_(0.7)
            elif "norm" in name.lower() and parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif parameter.ndim == 1:
                parameter.normal_(0.0, 0.2)
            elif "embedding" in name and "projection" not in name and "patch" not in name:
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)


def make(folder, name, reference):
    """Writes the model, its outputs and its gradients; gives the model as it was before."""
    torch.manual_seed(sum(name.encode()))
    model = reference.make().eval()
    randomise(model)
    model.save_pretrained(folder)
    inputs = reference.inputs()
    outputs = reference.outputs(model, inputs)
    backward(folder, inputs, outputs, reference.weighted)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder / "gradients")
    model.load_state_dict(original)
    return model


def backward(folder, inputs, outputs, weighted):
    """Of the loss that reference.safetensors, which this writes, tells."""
    weights = {key: torch.randn(value.shape) / value.numel() ** 0.5 for key, value in outputs.items() if weighted(key)}
    sum((outputs[key] * weight).sum() for key, weight in weights.items()).backward()
    save_file(
        {
            f"{kind}.{key}": value.detach().float().contiguous()
            for kind, tensors in (("input", inputs), ("output", outputs), ("weight", weights))
            for key, value in tensors.items()
        },
        folder / "reference.safetensors",
    )


def read(folder):
    """Inputs and outputs."""
    tensors = load_file(folder / "reference.safetensors")
    of = lambda kind: {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(kind + ".")}
    real = ("pixels", "regions", "clips")
    return {key: value if key in real else value.long() for key, value in of("input").items()}, of("output")


def difference(found, wanted):
    return max((found[key] - wanted[key]).abs().max().item() for key in wanted)


def check(root, name, reference):
    made = reference.make()
    eager = dict(attn_implementation=made.config._attn_implementation)
    model, info = type(made).from_pretrained(root / f"{name}-exported", output_loading_info=True, **eager)
    inputs, wanted = read(root / name)
    with torch.no_grad():
        found = reference.outputs(model.eval(), inputs)
    names = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    print(json.dumps({"name": name, "difference": difference(found, wanted), **names}))
