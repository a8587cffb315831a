"""Reads an exported folder with the libraries of Hugging Face; prints a JSON line: the SHA-256 of the weights as Videoloom defines it, how many
numbers they are, and what the tokenizer makes of its own tokens."""
import hashlib, json, os, sys
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = sys.argv[1]
weights = load_file(os.path.join(folder, "model.safetensors"))
digest = hashlib.sha256()
for name in sorted(weights):
    values = weights[name]
    digest.update(f"{json.dumps(name)} F32 {','.join(map(str, values.shape))}\n".encode())
    digest.update(values.astype("<f4").tobytes())
tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
text = tokenizer.decode(tokenizer.encode("a circle").ids, skip_special_tokens=True)
print(json.dumps({"sha256": digest.hexdigest(), "elements": sum(v.size for v in weights.values()), "text": text}))
