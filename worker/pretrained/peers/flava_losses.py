"""The losses of transformers' FlavaForPreTraining, of a folder that we exported and a batch that we made."""

import sys

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

folder, inputs, outputs = sys.argv[1:]
model = hf.FlavaForPreTraining.from_pretrained(folder).eval()
x = load_file(inputs)


def losses(**given):
    """None of what is given is to be changed: the model writes into its labels."""
    given = {name: value.clone() for name, value in given.items()}
    info = model(**given, return_loss=True, skip_unmasked_multimodal_encoder=True).loss_info
    return {name: loss.reshape(1) for name, loss in info.items() if loss is not None}


def part(kind):
    rows = x["kinds"] == kind
    ids = dict(
        input_ids=x["ids"][rows].long(), input_ids_masked=x["maskedIds"][rows].long(),
        attention_mask=x["present"][rows].long(), mlm_labels=x["wordLabels"][rows].long(),
    )
    seen = dict(
        pixel_values=x["pixels"][rows].permute(0, 3, 1, 2), bool_masked_pos=x["hidden"][rows] == 1,
        mim_labels=x["patchLabels"][rows].long(),
    )
    return ids, seen, rows


texts, _, _ = part(2)
_, pictures, _ = part(1)
ids, seen, rows = part(0)
alone = dict(texts, input_ids=texts["input_ids_masked"])
out = dict(mlm=losses(**alone)["mlm"], mim=losses(**pictures)["mim"])
pairs = losses(**ids, **seen, itm_labels=x["matches"][rows].long())
out |= {name: pairs[name] for name in ("itm", "mmm_image", "mmm_text")}
# Their negatives are left out of the rows of the contrast and stay in its columns; ours are shown their own text there.
out["global_contrastive"] = losses(**ids, **seen)["global_contrastive"]
save_file({name: loss.detach().contiguous() for name, loss in out.items()}, outputs)
