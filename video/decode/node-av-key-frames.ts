/** Where a film's key frames are, without decoding. */
import type { FormatContext, Stream } from 'node-av/lib';
import { MAX_KEY_FRAMES } from './decoder-backend.ts';
import type { NodeAv } from './node-av-format.ts';

/** So many packets after a key frame, the next one is looked for in the index instead. */
const PACKETS_BEFORE_HOP = 12;
/** Reading ends here; a container that has no index is read through. */
const MAX_READ_BYTES = 4 * 2 ** 30;

/**
 * When the key frames are shown, ascending, without those that an edit list hides. What an MP4 file's index (moov) tells
 * is taken from there by seeking from key frame to key frame; other containers' indexes may leave some out, so their
 * packets are read. Leaves the file anywhere.
 */
export function keyFrameSeconds(
  { lib, constants }: NodeAv,
  format: FormatContext,
  stream: Stream,
  secondsOf: (pts: bigint) => number,
): number[] {
  const found: number[] = [];
  const packet = new lib.Packet();
  packet.alloc();
  try {
    let canHop = /\bmov\b/.test(format.iformat?.name ?? '');
    let [last, numSince, numBytes] = [constants.AV_NOPTS_VALUE, 0, 0];
    while (found.length < MAX_KEY_FRAMES && numBytes < MAX_READ_BYTES) {
      if (format.readFrameSync(packet) < 0) break;
      numBytes += packet.size;
      const { streamIndex, isKeyframe, dts, pts } = packet;
      const isHidden = packet.hasFlags(constants.AV_PKT_FLAG_DISCARD);
      packet.unref();
      if (streamIndex !== stream.index) continue;
      const isNew = last === constants.AV_NOPTS_VALUE || dts > last;
      if (isKeyframe && isNew && pts !== constants.AV_NOPTS_VALUE) {
        if (!isHidden) found.push(secondsOf(pts));
        [last, numSince] = [dts, 0];
      } else if (++numSince === PACKETS_BEFORE_HOP && canHop && isNew) {
        // Fails after the last key frame, and where only a part of the index is known: then the rest is read.
        canHop = format.seekFrameSync(stream.index, dts + 1n) >= 0;
      } else if (!isNew) canHop = false;
    }
  } finally {
    packet.free();
  }
  return found.sort((a, b) => a - b);
}
