/** What goes into one record of a shard. Pure. */
import type { TimedText } from '../text/captions.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import type { SampleIndex } from '../index/sample-index.ts';

/** Samples of the same files, which are stored once for all of them. */
export interface PackRecord {
  readonly split: Split;
  /** Place among the records of its split; its key in the shards. */
  readonly number: number;
  /** Rows of the index's files, in the order in which the first sample speaks of them. */
  readonly files: readonly number[];
  readonly samples: readonly Sample[];
}

export type Split = 'train' | 'heldOut';

/** Of one split, in the order of their first samples. With `areShared` false every sample is a record of its own. */
export function recordsOf(index: SampleIndex, split: Split, areShared: boolean): PackRecord[] {
  const groups = new Map<string, { files: number[]; samples: Sample[] }>();
  for (const [at, sample] of index[split].entries()) {
    const files = [...new Set(sample.media.map(({ file }) => file))];
    const key = areShared && files.length > 0 ? files.join() : `sample ${at}`;
    const group = groups.get(key) ?? { files, samples: [] };
    group.samples.push(sample);
    groups.set(key, group);
  }
  return [...groups.values()].map((group, number) => ({ split, number, ...group }));
}

/** `00000012`: no dot, at which WebDataset ends a key. */
export function keyOf({ number }: PackRecord): string {
  return String(number).padStart(8, '0');
}

/** Part of a member's name behind the key: `mp4`, or with several media `0.jpg`, `1.jpg`. */
export function fieldOf(ending: string, place: number, numMedia: number): string {
  return numMedia === 1 ? ending : `${place}.${ending}`;
}

/** What a picture's or a video's bytes are called, by what they begin with. */
export function endingOf({ kind, codec }: MediaFile, head: Uint8Array): string {
  if (kind === 'image') return codec === 'jpeg' ? 'jpg' : codec;
  const ascii = Buffer.from(head.buffer, head.byteOffset, head.length).toString('latin1');
  if (ascii.slice(4, 8) === 'ftyp') return ascii.slice(8, 10) === 'qt' ? 'mov' : 'mp4';
  if (ascii.startsWith('\x1aE\xdf\xa3')) return ascii.includes('webm') ? 'webm' : 'mkv';
  if (ascii.startsWith('RIFF')) return 'avi';
  if (ascii.startsWith('OggS')) return 'ogv';
  if (ascii.startsWith('FLV')) return 'flv';
  return ascii.startsWith('G') ? 'ts' : 'mpg';
}

/** Words with their times as WebVTT. Source: W3C WebVTT, sec. 4.1. */
export function toVtt(cues: readonly TimedText[]): string {
  const blocks = cues.map(({ startSeconds, endSeconds, text }) => {
    const escaped = text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
    return `${timestamp(startSeconds)} --> ${timestamp(endSeconds)}\n${escaped}\n`;
  });
  return `WEBVTT\n\n${blocks.join('\n')}`;
}

function timestamp(seconds: number): string {
  const ms = Math.round(seconds * 1000);
  const two = (value: number): string => String(Math.floor(value)).padStart(2, '0');
  const rest = String(ms % 1000).padStart(3, '0');
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}.${rest}`;
}
