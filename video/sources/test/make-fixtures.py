"""Writes fixtures/ and fixtures/manifest.json: data as other tools write it, and what those tools read back from it.

Made with Python 3.11, webdataset 1.0.2, pyarrow 26.0.1, pillow 13.0.0 and FFmpeg 5.1.
    python make-fixtures.py        # pip install webdataset==1.0.2 pyarrow==26.0.1 pillow==13.0.0
    npx prettier --write fixtures  # which breaks the lines of the .json files as in the whole repository
"""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

ROOT = Path(__file__).parent / "fixtures"
MANIFEST = {}


def sha(data):
    return hashlib.sha256(data).hexdigest()


def picture(n, form="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), ((n * 40) % 256, (n * 90) % 256, 120)).save(buffer, form)
    return buffer.getvalue()


def film(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", f"color={color}:s=32x32:r=5:d=1",
         "-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", "threads=1", "-map_metadata", "-1",
         "-fflags", "+bitexact", str(path)],
        check=True,
    )
    return path.read_bytes()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def members(shard):
    """What Python's tarfile says: name, type, and for files where the bytes are."""
    with tarfile.open(shard) as tar:
        return [
            {"name": m.name, "isFile": m.isfile(), "offset": m.offset_data, "sizeBytes": m.size}
            for m in tar
        ]


def webdataset_shards(clip):
    folder = ROOT / "webdataset"
    folder.mkdir(parents=True)
    with wds.ShardWriter(str(folder / "pairs-%06d.tar"), maxcount=3, verbose=0) as sink:
        for n in range(5):
            sink.write({"__key__": f"a.b/{n:09d}" if n == 4 else f"{n:09d}", "jpg": picture(n),
                        "txt": f"picture number {n}", "json": {"caption": f"not {n}", "key": n}})
    with wds.TarWriter(str(folder / "clips.tar")) as sink:
        sink.write({"__key__": "one", "mp4": clip, "json": {"caption": "a clip of one colour"}})
        sink.write({"__key__": "two", "mp4": clip, "jpg": picture(7), "cls": 3})
        sink.write({"__key__": "three", "0.png": picture(1, "PNG"), "1.png": picture(2, "PNG"), "txt": "two pictures"})
        sink.write({"__key__": "four", "npy": b"no medium", "txt": "words alone"})
        sink.write({"__key__": "five", "webp": picture(3, "WEBP"), "seg.png": picture(4, "PNG"), "txt": ""})
    # img2dataset's files beside its shards.
    pq.write_table(pa.table({"caption": ["x"], "url": ["https://example.org/x.jpg"]}), folder / "pairs-000000.parquet")
    write(folder / "pairs-000000_stats.json", json.dumps({"count": 3}))

    expected = []
    for shard in sorted(folder.glob("*.tar")):
        for sample in wds.WebDataset(str(shard), shardshuffle=False):
            fields = {k: v for k, v in sample.items() if not k.startswith("__")}
            expected.append({"shard": shard.name, "key": sample["__key__"],
                             "fields": {k: {"sha256": sha(v), "text": v.decode() if k in ("txt", "json", "cls") else None}
                                        for k, v in fields.items()}})
    MANIFEST["webdataset"] = expected
    MANIFEST["tar"] = {p.name: members(p) for p in sorted(folder.glob("*.tar"))}


def tar_forms():
    """Every form of header, by Python's tarfile and by GNU tar."""
    folder = ROOT / "tar"
    folder.mkdir(parents=True)
    long = "long/" + "x" * 120 + "/" + "é" * 70 + ".jpg"
    for form, name in ((tarfile.USTAR_FORMAT, "ustar"), (tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        with tarfile.open(folder / f"{name}.tar", "w", format=form) as tar:
            def add(path, data=b"", **kwargs):
                info = tarfile.TarInfo(path)
                info.size = len(data)
                for key, value in kwargs.items():
                    setattr(info, key, value)
                tar.addfile(info, io.BytesIO(data))
            add("folder", type=tarfile.DIRTYPE)
            add("folder/a.jpg", picture(1))
            add("p" * 90 + "/" + "q" * 60 + ".jpg" if name == "ustar" else long, picture(2))
            add("empty.txt")
            add("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
            add("hard.jpg", type=tarfile.LNKTYPE, linkname="folder/a.jpg")
            add("pipe.jpg", type=tarfile.FIFOTYPE)
            add("../outside.jpg", picture(3))
            add("/absolute.jpg", picture(3))
            add("last.jpg", picture(4))
    work = ROOT / "sparse-work"
    work.mkdir()
    with open(work / "holes.jpg", "wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"data")
    write(work / "plain.jpg", picture(5))
    for form in ("gnu", "posix"):
        subprocess.run(["tar", "-C", str(work), "--sparse", f"--format={form}", "--mtime=@0", "--owner=0", "--group=0",
                        "-cf", str(folder / f"sparse-{form}.tar"), "holes.jpg", "plain.jpg"], check=True)
    shutil.rmtree(work)
    MANIFEST["tarForms"] = {p.name: members(p) for p in sorted(folder.glob("*.tar"))}


def webvid():
    folder = ROOT / "webvid"
    film(folder / "videos/000001_000050/101.mp4", "red")
    film(folder / "videos/moved/102.mp4", "blue")
    film(folder / "somewhere/203.mp4", "green")
    rows = [
        ["101", "https://example.org/101.mp4", "PT00H00M01S", "000001_000050", "A red, plain clip"],
        ["102", "https://example.org/102.mp4", "PT00H00M01S", "000051_000100", 'says "blue"\nover two lines'],
        ["103", "https://example.org/103.mp4", "PT00H00M01S", "000051_000100", "only a URL"],
        ["101", "https://example.org/101.mp4", "PT00H00M01S", "000001_000050", "the same id"],
        ["104", "", "PT00H00M01S", "000051_000100", "nowhere"],
        ["105", "", "PT00H00M01S", "../../etc", "outside"],
    ]
    with open(folder / "results_2M_train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writerows(rows)
    with open(folder / "results_2M_val.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writeheader()
        writer.writerow({"videoid": "203", "contentUrl": "", "duration": "", "page_dir": "x", "name": "grün"})
    with open(folder / "spans.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(["path", "text", "start", "end"])
        writer.writerow(["videos/moved/102.mp4", 'a "quoted word', "0.25", "0.75"])
        writer.writerow(["videos/moved/102.mp4", "from the start", "", "0.5"])
        writer.writerow(["videos/moved/102.mp4", "backwards", "0.5", "0.25"])
        writer.writerow(["/etc/passwd", "absolute", "", ""])


def instructions():
    folder = ROOT / "instructions"
    film(folder / "videos/v_abc.mp4", "yellow")
    for n in range(3):
        write(folder / f"pictures/coco/{n}.jpg", picture(n))
    records = [
        {"id": "000", "image": "coco/0.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A colour."},
            {"from": "human", "value": "Which?"}, {"from": "gpt", "value": "Blue, \"\\u00fc\" {[."}]},
        {"id": "000", "image": ["coco/1.jpg", "coco/2.jpg"], "video": "v_abc.mp4", "conversations": [
            {"from": "system", "value": "Be short."},
            {"from": "human", "value": "Compare <image> and <image> with <video>."}, {"from": "gpt", "value": "No."}]},
        {"id": 7, "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"id": "marks", "image": "coco/0.jpg", "conversations": [{"from": "human", "value": "<image> <image>"}]},
        {"id": "gone", "image": "coco/99.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "outside", "image": "../../../etc/passwd", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "file", "image": "file:///etc/passwd", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "drive", "image": "C:\\windows\\x.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
        {"id": "unmarked", "image": "coco/0.jpg", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
        {"id": "url", "image": "https://example.org/a%20b.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "This."}]},
        {"id": "said by", "conversations": [{"from": "robot", "value": "?"}]},
        {"id": "silent", "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": " <image> "}, {"from": "human", "value": "And?"}, {"from": "gpt", "value": "No."}]},
        {"id": "unanswered", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    write(folder / "llava.json", json.dumps(records, indent=2))
    write(folder / "llava.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write(folder / "chatgpt.json", json.dumps([{"q": "What colour?", "a": "Yellow.", "video_id": "v_abc"}]))


def image_text():
    folder = ROOT / "image-text"
    for n in range(3):
        write(folder / f"images/{n}.png", picture(n, "PNG"))
    write(folder / "blip.json", json.dumps([
        {"image": "images/0.png", "caption": "zero"},
        {"image": "images/1.png", "caption": ["one", "eins"], "image_id": "x"},
        {"url": "https://example.org/pic?size=2", "caption": "from afar"},
        {"image": "images/2.png", "caption": 7}]))
    write(folder / "metadata.jsonl", "".join(json.dumps(r) + "\n" for r in [
        {"file_name": "images/2.png", "text": "two"}, {"file_name": "images/9.png", "text": "gone"}]))
    write(folder / "captions_coco.json", json.dumps({
        "info": {"year": 2014}, "licenses": [{"id": 1, "name": "free"}],
        "images": [{"id": 5, "file_name": "0.png"}, {"id": 6, "file_name": "1.png"}],
        "annotations": [{"image_id": 6, "id": 40, "caption": "six"}, {"image_id": 5, "id": 41, "caption": "five"},
                        {"image_id": 7, "id": 42, "caption": "no image"}, {"image_id": 5, "id": 43, "caption": "five again"}]}))


def documents():
    folder = ROOT / "documents"
    write(folder / "images/b.jpg", picture(1))
    write(folder / "images/mmc4-0.png", picture(2, "PNG"))
    write(folder / "obelics.jsonl", "".join(json.dumps(r) + "\n" for r in [
        {"images": [None, "https://example.org/x/b.jpg?w=2", None, "https://example.org/x/c.jpg"],
         "texts": ["First.", None, "Second.", None], "metadata": "[]", "general_metadata": "{}"},
        {"images": [None], "texts": ["one", "two"]},
        {"images": ["https://example.org/b.jpg"], "texts": ["both"]}]))
    write(folder / "mmc4.jsonl", "".join(json.dumps(r) + "\n" for r in [
        {"url": "https://example.org", "text_list": ["A.", "B.", "C."], "image_info": [
            {"image_name": "mmc4-1.png", "raw_url": "https://example.org/1.png", "matched_text_index": 2, "matched_sim": 0.3},
            {"image_name": "mmc4-0.png", "raw_url": "https://example.org/0.png", "matched_text_index": 0, "matched_sim": 0.2}]},
        {"text_list": ["A."], "image_info": [{"image_name": "mmc4-0.png", "matched_text_index": 1}]}]))


def parquet():
    folder = ROOT / "parquet"
    write(folder / "images/named.jpg", picture(9))
    cells = [picture(n) for n in range(7)]
    captions = [f"row {n}" for n in range(7)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary()), "caption": captions}),
                   folder / "plain.parquet", row_group_size=3, compression="zstd")
    # As Hugging Face's datasets keep pictures; one row has a path alone, one nothing.
    structs = [{"bytes": c, "path": f"{n}.jpg"} for n, c in enumerate(cells)]
    structs[2] = {"bytes": None, "path": "images/named.jpg"}
    structs[5] = {"bytes": None, "path": None}
    features = {"info": {"features": {"image": {"_type": "Image"}, "sound": {"_type": "Audio"},
                                      "text": {"dtype": "string", "_type": "Value"}}}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"sound": pa.array([{"bytes": b"s", "path": None}] * 7, kind),
                      "image": pa.array(structs, kind), "text": captions})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=4, compression="snappy")
    pq.write_table(table.slice(0, 2), folder / "validation-00000-of-00001.parquet", compression="gzip")
    pq.write_table(pa.table({"images": pa.array([structs[:2], structs[3:4], []], pa.list_(kind)),
                             "captions": [["a", "b"], ["c"], ["d"]]}), folder / "lists.parquet")
    pq.write_table(pa.table({"URL": ["https://example.org/1.jpg", None, "images/named.jpg", "../../x.jpg"],
                             "TEXT": ["one", "two", None, "four"], "WIDTH": [1, 2, 3, 4]}),
                   folder / "urls.parquet", compression="brotli")
    pq.write_table(pa.table({"a": [1, 2]}), folder / "other.parquet")
    MANIFEST["parquet"] = {
        "plain": [sha(c.as_py()) for c in pq.read_table(folder / "plain.parquet")["image"]],
        "train": [sha(c["bytes"]) if c["bytes"] else None
                  for c in pq.read_table(folder / "train-00000-of-00001.parquet")["image"].to_pylist()],
        "lists": [[sha(c["bytes"]) for c in row] for row in pq.read_table(folder / "lists.parquet")["images"].to_pylist()],
    }


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    clip = film(ROOT / "clip.mp4", "gray")
    (ROOT / "clip.mp4").unlink()
    webdataset_shards(clip)
    tar_forms()
    webvid()
    instructions()
    image_text()
    documents()
    parquet()
    write(ROOT / "manifest.json", json.dumps(MANIFEST, indent=1) + "\n")


main()
