import { isOneFrame, type Given, type Row } from '../systems/system.ts';

/** Of clips with more frames, the first one of each window is drawn. */
const MAX_FRAMES = 64;

/** Places of the frames that are drawn: of the windows that are shown, the same frame once. */
export function framesShown(
  row: Row,
  windows: Given['windows'],
  framesPerWindow: number,
): number[] {
  const every = row.timesSeconds.length > MAX_FRAMES ? framesPerWindow : 1;
  const frames = [...row.timesSeconds.keys()].filter(
    (frame) =>
      frame % every === 0 && (windows?.includes(Math.floor(frame / framesPerWindow)) ?? true),
  );
  return frames.filter((frame, i) => i === 0 || !isOneFrame(row, frames[i - 1]!, frame));
}
