/** What records of conversations have in common: turns, places of media, ids, and subtitles beside what is shown. */
import { DataError } from '../index/sample-index.ts';
import type { SamplePart } from '../index/sample.ts';
import { fieldsOf, stringsOf, tellFault, type Fields, type JsonRecord } from './json-records.ts';
import { stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceMedia, SourceSample } from './source.ts';
import { SUBTITLE_ENDINGS, type Words } from './words.ts';
import { readWords, wordFilesOf } from './words-beside.ts';

export interface Conversation {
  readonly media: readonly SourceMedia[];
  readonly parts: readonly SamplePart[];
}

/** What somebody says, with the marks `<image>` and `<video>` of media in it. */
export interface Said {
  readonly role: NonNullable<SamplePart['role']>;
  readonly text: string;
}

const MARKER = /<(image|video)>/;
const ROLES: Readonly<Record<string, Said['role']>> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  system: 'system',
};

/**
 * The turns of a record's list `[{from, value}]` or `[{role, content}]`.
 * @throws DataError RECORD_INCOMPLETE
 */
export function saidIn(list: unknown): Said[] {
  if (!Array.isArray(list) || list.length === 0) throw incomplete('its conversation is empty');
  return list.map((turn: unknown, at) => {
    const { value, content = value } = fieldsOf(turn) ?? {};
    const known = roleOf(turn);
    const text = wordsOf(content);
    if (known === undefined || text === undefined) {
      throw incomplete(`its turn ${at + 1} has no text or is from neither human, gpt nor system`);
    }
    // Its question would be taken for an answer, or run into the next one.
    if (known === 'assistant' && text.replaceAll(new RegExp(MARKER, 'g'), '').trim() === '') {
      throw incomplete(`its turn ${at + 1}, an answer, has no words`);
    }
    return { role: known, text };
  });
}

/** Whose turn it is, `{from}` or `{role}`; undefined where that is unknown. */
export function roleOf(turn: unknown): Said['role'] | undefined {
  const { from, role = from } = fieldsOf(turn) ?? {};
  return typeof role === 'string' && Object.hasOwn(ROLES, role) ? ROLES[role] : undefined;
}

/** A string, or the list of pieces that transformers' chat templates take, `[{type: image}, {type: text, text}]`. */
export function wordsOf(content: unknown): string | undefined {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) return undefined;
  const pieces = content.map((piece: unknown) => {
    const { type, text } = fieldsOf(piece) ?? {};
    return type === 'image' || type === 'video' ? `<${type}>` : text;
  });
  return pieces.every((piece) => typeof piece === 'string') ? pieces.join('\n') : undefined;
}

/**
 * Turns with the media of a record's fields `image`, `images`, `video` and `videos` in the places of their marks, or
 * first where no place is marked.
 * @throws DataError RECORD_INCOMPLETE, MEDIA_MARKS; as `names.find`
 */
export function withMedia(
  said: readonly Said[],
  fields: Fields,
  { recordFile, names }: { readonly recordFile: string; readonly names: MediaNames },
): Conversation {
  // What waits for its place, by kind.
  const waiting: Record<SourceMedia['kind'], SourceMedia[]> = { image: [], video: [] };
  for (const kind of ['image', 'video'] as const) {
    const values = stringsOf(fields[kind] ?? fields[`${kind}s`] ?? []);
    if (values === undefined) throw incomplete(`its ${kind} is neither a name nor a list of names`);
    waiting[kind] = values.map((value) => names.find(value, { recordFile, kind }));
  }
  const numMedia = { image: waiting.image.length, video: waiting.video.length };
  const isMarked = said.some(({ text }) => MARKER.test(text));
  const media: SourceMedia[] = isMarked ? [] : [...waiting.video, ...waiting.image];
  const parts: SamplePart[] = media.map((_, at) => ({ role: 'user', media: at }));
  const numMarkers = { image: 0, video: 0 };
  for (const { role, text } of said) {
    // Text, kind of the marker, text, kind, text.
    for (const [i, piece] of text.split(MARKER).entries()) {
      if (i % 2 === 0) {
        if (piece.trim() !== '') parts.push({ role, text: piece.trim() });
        continue;
      }
      const kind = piece as SourceMedia['kind'];
      numMarkers[kind]++;
      const medium = waiting[kind].shift();
      if (medium !== undefined) parts.push({ role, media: media.push(medium) - 1 });
    }
  }
  for (const kind of ['image', 'video'] as const) {
    if (isMarked && numMarkers[kind] !== numMedia[kind]) {
      const message = `it has ${numMedia[kind]} media of the kind ${kind} and ${numMarkers[kind]} marks <${kind}>`;
      throw new DataError('MEDIA_MARKS', message);
    }
  }
  return { media, parts };
}

/** A record's sample. LLaVA's ids name pictures and repeat: its id is the file's name, that id and the record's place. */
export function sampleOf(
  { media, parts }: Conversation,
  fields: Fields,
  { index, recordFile }: Pick<JsonRecord, 'index'> & { readonly recordFile: string },
): SourceSample {
  const { id } = fields;
  const own = typeof id === 'string' || typeof id === 'number' ? `${id}#${index}` : `${index}`;
  const text = parts.flatMap((part) => part.text ?? []).join('\n');
  return { id: `${stemOf(recordFile)}/${own}`, media, text, cues: [], parts };
}

/** The source with the subtitles that lie beside the first medium of a sample as its cues. */
export function withSubtitlesBeside(source: Source): Source {
  return {
    ...source,
    async *read(store, files, signal) {
      const subtitles = wordFilesOf(files, SUBTITLE_ENDINGS);
      // Many records may be of one film.
      const known = new Map<string, () => Words>();
      for await (const record of source.read(store, files, signal)) {
        const first = 'sample' in record ? record.sample.media[0] : undefined;
        const file = first?.kind === 'video' ? subtitles.get(stemOf(first.path)) : undefined;
        if (file === undefined || !('sample' in record)) {
          yield record;
          continue;
        }
        const read = known.get(file.path) ?? (await readWords(store, file, signal));
        known.set(file.path, read);
        yield* tellFault(file.path, () => {
          const { cues, numWarnings: numCaptionWarnings } = read();
          return [{ ...record.sample, cues, numCaptionWarnings }];
        });
      }
    },
  };
}

export function incomplete(what: string): DataError {
  return new DataError('RECORD_INCOMPLETE', what);
}
