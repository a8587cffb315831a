import type { TimedText } from '../../video/text/captions.ts';

/**
 * The words spoken while each frame is shown: of a frame until the next one, of the last until the end, of the first
 * from the start. A cue is given once, with the frame during which it begins; so words already given are not repeated.
 * Source: Vision-CAIR/MiniGPT4-video, minigpt4/datasets/datasets/video_datasets.py.
 *
 * @param timesSeconds of the frames, in their order
 */
export function spokenDuring(
  cues: readonly TimedText[],
  timesSeconds: readonly number[],
): string[] {
  const words = timesSeconds.map((): string[] => []);
  for (const { startSeconds, text } of cues) {
    const after = timesSeconds.findIndex((time) => time > startSeconds);
    const frame = after < 0 ? timesSeconds.length - 1 : Math.max(0, after - 1);
    words[frame]?.push(text);
  }
  return words.map((said) => said.join(' '));
}

/** The words said while a frame is shown: of the cue that it lies in, else of the nearest. */
export function wordsAt(cues: readonly TimedText[], seconds: number): string {
  let [nearest, distance] = ['', Infinity];
  for (const { startSeconds, endSeconds, text } of cues) {
    const away = Math.max(startSeconds - seconds, seconds - endSeconds, 0);
    if (away < distance) [nearest, distance] = [text, away];
  }
  return nearest;
}
