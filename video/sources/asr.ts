/** Transcripts that speech recognisers write as JSON, as words with times where they have them. */
import type { TimedText } from '../text/captions.ts';
import { fieldsOf, type Fields } from './json-records.ts';

export interface Transcript {
  /** By start, then by end. */
  readonly cues: readonly TimedText[];
  /** Words or segments left out for their times: none, negative, or the end before the start. */
  readonly numFaulty: number;
}

/**
 * The transcript that a JSON value is, undefined if it is of none of these forms: Whisper's (`segments`, each with
 * `words` where they were asked for; also faster-whisper's and WhisperX's), whisper.cpp's (`transcription`), that of
 * Hugging Face's pipeline (`chunks`), YouTube's json3 (`events`), HowTo100M's (`start`, `end` and `text` as lists) and a
 * plain list of `{start, end, text}`.
 */
export function transcriptOf(value: unknown): Transcript | undefined {
  const spans = Array.isArray(value) ? plainSpans(value) : spansOf(fieldsOf(value) ?? {});
  if (spans === undefined) return undefined;
  const cues: TimedText[] = [];
  let numFaulty = 0;
  for (const { start, end, text } of spans) {
    const words = typeof text === 'string' ? text.replace(/\s+/g, ' ').trim() : '';
    if (words === '') continue;
    if (isTime(start) && isTime(end) && start <= end) {
      cues.push({ startSeconds: start, endSeconds: end, text: words });
    } else numFaulty++;
  }
  cues.sort((a, b) => a.startSeconds - b.startSeconds || a.endSeconds - b.endSeconds);
  return { cues, numFaulty };
}

interface Span {
  readonly start: unknown;
  readonly end: unknown;
  readonly text: unknown;
}

function spansOf(fields: Fields): Span[] | undefined {
  const { segments, transcription, chunks, events, start, end, text } = fields;
  if (Array.isArray(segments)) return objectsOf(segments).flatMap(whisperSegment);
  if (Array.isArray(transcription)) return objectsOf(transcription).map(whisperCppSegment);
  if (Array.isArray(chunks)) return objectsOf(chunks).map(pipelineChunk);
  if (Array.isArray(events)) return json3Events(objectsOf(events));
  if (Array.isArray(start) && Array.isArray(end) && Array.isArray(text)) {
    const [ends, texts]: unknown[][] = [end, text];
    return start.map((from: unknown, i) => ({ start: from, end: ends![i], text: texts![i] }));
  }
  return undefined;
}

function plainSpans(list: readonly unknown[]): Span[] | undefined {
  const spans = objectsOf(list);
  const isPlain = spans.length > 0 && spans.every((span) => 'start' in span && 'text' in span);
  return isPlain ? spans.map(({ start, end, text }) => ({ start, end, text })) : undefined;
}

/** Words, or the segment where it has none. WhisperX gives numbers no times: they go with the word before. */
function whisperSegment({ start, end, text, words }: Fields): Span[] {
  if (!Array.isArray(words) || words.length === 0) return [{ start, end, text }];
  const spans: Span[] = [];
  for (const fields of objectsOf(words)) {
    const word = fields['word'] ?? fields['text'];
    const last = spans.at(-1);
    if (fields['start'] !== undefined || last === undefined) {
      spans.push({ start: fields['start'] ?? start, end: fields['end'], text: word });
    } else {
      spans[spans.length - 1] = { ...last, text: `${String(last.text)} ${String(word)}` };
    }
  }
  return spans;
}

function whisperCppSegment({ offsets, text }: Fields): Span {
  const { from, to } = fieldsOf(offsets) ?? {};
  return { start: fromMs(from), end: fromMs(to), text };
}

function pipelineChunk({ timestamp, text }: Fields): Span {
  const [start, end] = Array.isArray(timestamp) ? (timestamp as unknown[]) : [];
  return { start, end, text };
}

/** Words of `segs`; one lasts until the next begins, the last of an event until it or the next event does. */
function json3Events(events: readonly Fields[]): Span[] {
  const spoken = events.filter(({ segs }) => Array.isArray(segs));
  return spoken.flatMap(({ tStartMs, dDurationMs, segs }, at): Span[] => {
    if (!isTime(tStartMs)) return [{ start: undefined, end: undefined, text: '?' }];
    const nextMs = spoken[at + 1]?.['tStartMs'];
    const toldEndMs = tStartMs + (isTime(dDurationMs) ? dDurationMs : 0);
    const endMs = isTime(nextMs) && nextMs > tStartMs ? Math.min(nextMs, toldEndMs) : toldEndMs;
    const words = objectsOf(segs as unknown[]).filter(
      ({ utf8 }) => typeof utf8 === 'string' && utf8.trim() !== '',
    );
    const startsMs = words.map(({ tOffsetMs }) => tStartMs + (isTime(tOffsetMs) ? tOffsetMs : 0));
    return words.map(({ utf8 }, i) => {
      const startMs = startsMs[i]!;
      return {
        start: startMs / 1000,
        end: Math.max(startMs, startsMs[i + 1] ?? endMs) / 1000,
        text: utf8,
      };
    });
  });
}

function objectsOf(list: readonly unknown[]): Fields[] {
  return list.map(fieldsOf).filter((fields) => fields !== undefined);
}

function fromMs(value: unknown): unknown {
  return typeof value === 'number' ? value / 1000 : value;
}

function isTime(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0;
}
