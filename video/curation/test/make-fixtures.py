"""Makes fixtures/curation.json: what datasketch, imagehash and Python's own Counter say of small texts and pictures.
Made with Python 3.11, datasketch 2.0.0, ImageHash 4.3.2, Pillow 13.0.0, numpy 2.4.6:
    pip install datasketch==2.0.0 ImageHash==4.3.2 pillow==13.0.0 && python make-fixtures.py
"""
import base64, json, math, os, random, re
from collections import Counter
import imagehash, numpy as np
from datasketch import MinHash, MinHashLSH
from PIL import Image, ImageDraw, ImageFilter

random.seed(1)
WORDS = "a the of red blue green ball cube moves left right slowly under over table dog cat runs jumps field house two man woman walks rides bicycle street rain sun opens door kitchen cooks eggs pan then smiles camera".split()

def shingles(text):
    t = re.sub(r"\s+", " ", text.lower()).strip()
    return {t[i:i + 5] for i in range(max(1, len(t) - 4))}

def jaccard(a, b): return len(a & b) / len(a | b)

def minhash(text):
    m = MinHash(num_perm=128)
    for s in sorted(shingles(text)): m.update(s.encode())
    return m

def captions():
    base = [" ".join(random.choice(WORDS) for _ in range(random.randint(8, 20))) for _ in range(40)]
    out = list(base)
    for t in base[:20]:                       # near copies at growing distance
        w = t.split()
        for _ in range(random.randint(1, 3)): w[random.randrange(len(w))] = random.choice(WORDS)
        out.append(" ".join(w))
        out.append(t.upper() + ".")
    return out

def char_repetition(t, n):
    c = sorted(Counter(t[i:i + n] for i in range(len(t) - n + 1)).values(), reverse=True)
    k = min(int(math.sqrt(len(c))), len(c) - sum(x == 1 for x in c))
    return sum(c[:k]) / sum(c) if c else 0

def word_repetition(t, n):
    w = [re.sub(r"^[^a-z]+|[^a-z]+$", "", x) for x in t.lower().split()]
    w = [x for x in w if x]
    c = Counter(" ".join(w[i:i + n]) for i in range(len(w) - n + 1)).values()
    return sum(x for x in c if x > 1) / sum(c) if c else 0

def picture(seed):
    r = np.random.RandomState(seed)
    im = Image.new("L", (256, 256), int(r.randint(60, 200)))
    d = ImageDraw.Draw(im)
    for _ in range(9):
        x, y, s = r.randint(0, 256, 3)
        d.ellipse([int(x - s / 3), int(y - s / 4), int(x + s / 3), int(y + s / 4)], fill=int(r.randint(0, 256)))
    return im

def pictures():
    out = []
    for seed in range(4):
        im = picture(seed)
        variants = {"as it is": im, "blurred": im.filter(ImageFilter.GaussianBlur(3)), "mirrored": im.transpose(Image.FLIP_LEFT_RIGHT), "brighter": im.point(lambda v: min(255, v + 20))}
        for name, v in variants.items():
            small = v.resize((32, 32), Image.LANCZOS)
            out.append({"of": seed, "name": name, "grey": base64.b64encode(small.tobytes()).decode(), "hash": str(imagehash.phash(small))})
    return out

texts = captions()
lsh = MinHashLSH(threshold=0.8, num_perm=128, params=(21, 6))
hashes = [minhash(t) for t in texts]
for i, h in enumerate(hashes): lsh.insert(str(i), h)
pairs = [(i, j) for i in range(len(texts)) for j in range(i)]
near = sorted([j, i] for i, j in pairs if jaccard(shingles(texts[i]), shingles(texts[j])) >= 0.8)
sample = [p for p in pairs if jaccard(shingles(texts[p[0]]), shingles(texts[p[1]])) > 0.3] + pairs[:40]
repeated = [texts[0], (texts[1] + " ") * 4, "buy now! " * 30, "x" * 50, "one two three four five one two three four five six", "short"]
json.dump({
    "texts": texts,
    "near": near,
    "lshFound": sorted([j, i] for i, j in pairs if str(j) in lsh.query(hashes[i]) and [j, i] in near),
    "pairs": [{"a": i, "b": j, "jaccard": jaccard(shingles(texts[i]), shingles(texts[j])), "datasketch": hashes[i].jaccard(hashes[j])} for i, j in sample],
    "repetition": [{"text": t, "characters": char_repetition(t, 10), "words": word_repetition(t, 5)} for t in repeated],
    "pictures": pictures(),
}, open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "curation.json"), "w"), separators=(",", ":"))
