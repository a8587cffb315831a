"""A peer of video.ts: frames of films by index, as RGB of 224 x 224, on one thread.
Usage: decode.py torchcodec|decord|pyav [core]. Each line on stdin is a JSON command {"calls": [{"path", "indices"}],
"dump": file or null}; a call opens its file anew. The answer is a JSON line: seconds, CPU seconds of all threads, and
when the frames of each call are shown. With "dump" the pixels are written to that file, call after call."""
import json, os, sys, time

SIZE = 224


def open_torchcodec():
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    torch.set_num_threads(1)

    def decode(path, indices):
        film = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="exact", transforms=[Resize((SIZE, SIZE))])
        batch = film.get_frames_at(indices)
        return batch.data.permute(0, 2, 3, 1), batch.pts_seconds.tolist()

    return decode


def open_decord():
    import decord

    def decode(path, indices):
        film = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
        frames = film.get_batch(indices).asnumpy()
        return frames, [float(film.get_frame_timestamp(i)[0]) for i in indices]

    return decode


def open_pyav():
    import av, numpy

    def decode(path, indices):
        frames, seconds = [], []
        with av.open(path) as film:
            stream = film.streams.video[0]
            stream.thread_count, stream.thread_type = 1, "NONE"
            packets = [p for p in film.demux(stream) if p.pts is not None]
            shown = sorted(p.pts for p in packets)
            keys = [p.pts for p in packets if p.is_keyframe]
            at = None
            for pts in (shown[i] for i in indices):
                key = max(k for k in keys if k <= pts)
                if at is None or key > at:  # a key frame lies between: go there
                    film.seek(key, stream=stream, backward=True)
                    decoded = film.decode(stream)
                if at != pts:
                    frame = next(f for f in decoded if f.pts >= pts)
                    picture = frame.reformat(SIZE, SIZE, "rgb24").to_ndarray()
                at = pts
                frames.append(picture)
                seconds.append(float(frame.pts * stream.time_base))
        return numpy.stack(frames), seconds

    return decode


def main():
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    decode = {"torchcodec": open_torchcodec, "decord": open_decord, "pyav": open_pyav}[sys.argv[1]]()
    for line in sys.stdin:
        command = json.loads(line)
        dump = open(command["dump"], "wb") if command.get("dump") else None
        pts = []
        wall, cpu = time.perf_counter(), time.process_time()
        for call in command["calls"]:
            frames, seconds = decode(call["path"], call["indices"])
            pts.append(seconds)
            if dump:
                import numpy

                dump.write(numpy.ascontiguousarray(frames).tobytes())
        if dump:
            dump.close()
        taken = {"seconds": time.perf_counter() - wall, "cpuSeconds": time.process_time() - cpu}
        print(json.dumps({**taken, "pts": pts}), flush=True)


main()
