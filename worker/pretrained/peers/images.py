"""Pictures as transformers' image processors make them ready: images.py FOLDER

For each processor NAME/preprocessor_config.json, and NAME/cases.safetensors with `picture.I` [H, W, 3] and what becomes
of it, `values.I` [H', W', 3].
"""

import sys
from pathlib import Path

import numpy as np
import transformers as hf
from PIL import Image
from safetensors.numpy import save_file
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZES = [(64, 48), (48, 64), (37, 91), (24, 24), (17, 200), (131, 60), (8, 5)]
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
    # A crop that is wider than the picture.
    "clip-padded": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 31, "width": 28}),
    "clip-cropped": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 33, "width": 26}),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 40}),
    "vit": ViTImageProcessorPil(size={"height": 30, "width": 30}),
    "vit-lanczos": ViTImageProcessorPil(size={"height": 90, "width": 21}, resample=1, do_normalize=False),
    "vit-box": ViTImageProcessorPil(size={"height": 24, "width": 24}, resample=4, do_rescale=False, do_normalize=False),
    "blip": BlipImageProcessorPil(size={"height": 36, "width": 36}),
    "video-llava": hf.VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
}


def main(folder):
    rng = np.random.default_rng(7)
    # Noise, and a slope whose resampling does not leave the range.
    pictures = []
    for width, height in SIZES:
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        slope = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
        pictures += [noise, slope]
    for name, processor in PROCESSORS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        processor.save_pretrained(folder / name)
        tensors = {}
        for i, pixels in enumerate(pictures):
            # Video-LLaVA's has another name for them.
            values = np.asarray(next(iter(processor(images=Image.fromarray(pixels)).values())))
            tensors[f"picture.{i}"] = pixels.astype(np.float32)
            tensors[f"values.{i}"] = np.ascontiguousarray(values.reshape(values.shape[-3:]).transpose(1, 2, 0)).astype(np.float32)
        save_file(tensors, folder / name / "cases.safetensors")


if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    main(Path(sys.argv[1]))
