import { printable } from '../../proto/printable.ts';
import { redactUrl } from '../storage/paths.ts';
import { locationShown } from './sample.ts';
import type { SampleIndex } from './sample-index.ts';

const SHOWN_SAMPLES = 8;
const SHOWN_SKIPS = 20;

/** What an index holds, in lines for people. */
export function* summaryOf({ files, train, heldOut, skipped }: SampleIndex): Generator<string> {
  const samples = [...train, ...heldOut];
  yield `${train.length} samples to train on, ${heldOut.length} held out, of ${files.length} files`;
  const videos = files.filter(({ kind }) => kind === 'video');
  if (videos.length > 0) {
    const seconds = sum(videos.map(({ durationSeconds }) => durationSeconds));
    const withSound = videos.filter(({ hasAudio }) => hasAudio).length;
    const gaps = videos.map(
      (file) => file.durationSeconds / Math.max(1, file.keyFrameSeconds.length),
    );
    yield (
      `${videos.length} videos: ${seconds.toFixed(1)} s, ${sizeOf(videos)}, ${tally(videos.map(({ codec }) => codec))}, ` +
      `${tally(videos.map(({ width, height }) => `${width}x${height}`))}, ${withSound} with sound, ` +
      `a key frame every ${(sum(gaps) / gaps.length).toFixed(1)} s`
    );
  }
  const pictures = files.filter(({ kind }) => kind === 'image');
  if (pictures.length > 0) {
    yield `${pictures.length} pictures: ${sizeOf(pictures)}, ${tally(pictures.map(({ codec }) => codec))}`;
  }
  const words = samples.map(({ text }) => text.split(/\s+/).filter((word) => word !== '').length);
  yield (
    `${sum(words)} words, ${words.filter((count) => count === 0).length} samples without any; ` +
    `${sum(samples.map(({ decodeMegapixels }) => decodeMegapixels)).toFixed(0)} megapixels to decode in one pass`
  );
  for (const { id, media, text } of samples.slice(0, SHOWN_SAMPLES)) {
    const spans = media.map(({ file, startSeconds, endSeconds }) =>
      files[file]!.kind === 'image'
        ? locationShown(files[file]!)
        : `${startSeconds.toFixed(2)}-${endSeconds.toFixed(2)} s`,
    );
    yield printable(`  ${id}  ${spans.join(', ')}  ${text === '' ? '(no words)' : text}`);
  }
  for (const { path, code, message } of skipped.slice(0, SHOWN_SKIPS)) {
    yield printable(`  skipped ${redactUrl(path)}: ${code}: ${message}`);
  }
  const reasons = tally(skipped.map(({ code }) => code));
  if (skipped.length > SHOWN_SKIPS) yield `  ${skipped.length} skipped in all: ${reasons}`;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function sizeOf(files: readonly { readonly sizeBytes: number }[]): string {
  return `${(sum(files.map(({ sizeBytes }) => sizeBytes)) / 2 ** 20).toFixed(1)} MiB`;
}

/** `h264 12, vp9 1`, the most frequent first. */
function tally(names: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  const sorted = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const shown = sorted.slice(0, 4).map(([name, count]) => `${name} ${count}`);
  return `${shown.join(', ')}${sorted.length > shown.length ? `, ${sorted.length - shown.length} others` : ''}`;
}
