/** Clips with something taken away, to find out what an answer comes from. */
import { SILENCE } from '../../video/audio/clip-sound.ts';
import { openRng, shuffled } from '../../proto/random.ts';
import { shownKey } from '../../video/index/sample.ts';
import type { Row } from './system.ts';

/**
 * `single`: the middle frame in every place; `shuffled`: the frames in another order; `reversed`: from the last to the
 * first; `blank`: grey; `silent`: without its sound; `wordless`: without its subtitles.
 */
export const FRAME_CHANGES = [
  'single',
  'shuffled',
  'reversed',
  'blank',
  'silent',
  'wordless',
] as const;
export type FrameChange = (typeof FRAME_CHANGES)[number];

/** The next row of another medium, behind the last the first again; undefined where all are of one. */
export function otherRow(rows: readonly Row[], at: number): Row | undefined {
  const own = shownKey(rows[at]!.sample);
  const behind = [...rows.slice(at + 1), ...rows.slice(0, at)];
  return behind.find(({ sample }) => shownKey(sample) !== own);
}

/** In the place of each row one of another medium, where there is any: what is shown beside a conversation is not its own. */
export function ofOthers(rows: readonly Row[]): Row[] {
  return rows.map((row, at) => otherRow(rows, at) ?? row);
}

/** Rows that keep their words and their randomness, and have the frames of others; see {@link ofOthers}. */
export function withFramesOfOthers(rows: readonly Row[]): Row[] {
  return ofOthers(rows).map(({ frames }, i) => ({ ...rows[i]!, frames }));
}

/** A pure function of row and seed. */
export function changedRow(
  row: Row,
  change: FrameChange,
  { frameSize, seed }: { readonly frameSize: number; readonly seed: number },
): Row {
  const { frames, audio, sample, number } = row;
  const frameBytes = frameSize * frameSize * 3;
  const numFrames = frames.length / frameBytes;
  const order = Array.from({ length: numFrames }, (_, i) => i);
  const inOrder = (from: readonly number[]): Row => {
    const changed = new Uint8Array(frames.length);
    for (const [place, frame] of from.entries())
      changed.set(
        frames.subarray(frame * frameBytes, (frame + 1) * frameBytes),
        place * frameBytes,
      );
    return { ...row, frames: changed };
  };
  switch (change) {
    case 'single':
      return inOrder(order.map(() => numFrames >> 1));
    case 'shuffled':
      return inOrder(shuffled(order, openRng(seed, 'shuffled-frames', number)));
    case 'reversed':
      return inOrder(order.reverse());
    case 'blank':
      return { ...row, frames: new Uint8Array(frames.length).fill(128) };
    case 'silent':
      return audio === undefined
        ? row
        : { ...row, audio: new Float32Array(audio.length).fill(SILENCE) };
    case 'wordless':
      return { ...row, sample: { ...sample, cues: [] } };
  }
}
