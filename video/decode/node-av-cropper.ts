/** Cuts parts out of pictures with FFmpeg's `crop` filter: no copy, whatever the pixel format. */
import type { FilterContext, FilterGraph, Frame } from 'node-av/lib';
import type { Rectangle } from './framing.ts';
import type { NodeAv } from './node-av-format.ts';

/** For pictures of one size and format; closed by `close`. */
export class Cropper {
  readonly #av: NodeAv;
  readonly #graph: FilterGraph;
  readonly #input: FilterContext;
  readonly #output: FilterContext;
  readonly #cut: Frame;

  /** @throws if the filters cannot be set up: FFmpeg is out of memory. */
  constructor(av: NodeAv, picture: Frame, { x, y, width, height }: Rectangle) {
    const { lib } = av;
    this.#av = av;
    this.#graph = new lib.FilterGraph();
    this.#graph.alloc();
    const { width: w, height: h, format, colorSpace, colorRange } = picture;
    const like = `video_size=${w}x${h}:pix_fmt=${format}:colorspace=${colorSpace}:range=${colorRange}`;
    this.#input = this.#filter('buffer', `${like}:time_base=1/1000`);
    const crop = this.#filter('crop', `${width}:${height}:${x}:${y}:exact=1`);
    this.#output = this.#filter('buffersink', null);
    this.#input.link(0, crop, 0);
    crop.link(0, this.#output, 0);
    lib.FFmpegError.throwIfError(this.#graph.configSync(), 'crop');
    this.#cut = new lib.Frame();
    this.#cut.alloc();
  }

  /** Valid until the next cut. */
  cut(picture: Frame): Frame {
    const { lib, constants } = this.#av;
    this.#cut.unref();
    const sent = this.#input.buffersrcAddFrameSync(picture, constants.AV_BUFFERSRC_FLAG_KEEP_REF);
    lib.FFmpegError.throwIfError(sent, 'crop');
    lib.FFmpegError.throwIfError(this.#output.buffersinkGetFrameSync(this.#cut), 'crop');
    return this.#cut;
  }

  close(): void {
    this.#cut.free();
    this.#graph.free();
  }

  #filter(name: string, args: string | null): FilterContext {
    const filter = this.#av.lib.Filter.getByName(name);
    const context = filter && this.#graph.createFilter(filter, name, args);
    if (!context)
      throw new Error(`FFmpeg's filter ${name} cannot be made with ${args ?? 'nothing'}`);
    return context;
  }
}
