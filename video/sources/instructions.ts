/** Conversations about pictures and videos: LLaVA's JSON and Video-ChatGPT's. */
import { DataError } from '../index/sample-index.ts';
import type { SamplePart } from '../index/sample.ts';
import {
  fieldsOf,
  recordSource,
  stringOf,
  stringsOf,
  tellFault,
  type Fields,
  type JsonRecord,
} from './json-records.ts';
import { stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceMedia, SourceSample } from './source.ts';
import { SUBTITLE_ENDINGS, type Words } from './words.ts';
import { readWords, wordFilesOf } from './words-beside.ts';

const withoutCues: Source = recordSource('instructions', conversation);

/**
 * Records `{id, image | video, conversations: [{from, value}]}` (LLaVA; also `images`, `videos`, `messages`,
 * `role` and `content`) and `{q, a, video_id}` (Video-ChatGPT), in arrays or JSON Lines. The media take the places of
 * `<image>` and `<video>` in order; where no place is marked they come first. LLaVA's ids name pictures and repeat, so a
 * sample's id is the file's name, that id and the record's place. Subtitles beside the first medium are its cues.
 * Source: github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; github.com/mbzuai-oryx/Video-ChatGPT, data/README.md.
 */
export const instructions: Source = {
  ...withoutCues,
  async *read(store, files, signal) {
    const subtitles = wordFilesOf(files, SUBTITLE_ENDINGS);
    // Many records may be of one film.
    const known = new Map<string, () => Words>();
    for await (const record of withoutCues.read(store, files, signal)) {
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

function conversation(
  { value, index }: JsonRecord,
  recordFile: string,
  names: MediaNames,
): SourceSample {
  const fields = fieldsOf(value);
  if (fields === undefined) throw incomplete('it is no object');
  const { media, parts } = Object.hasOwn(fields, 'video_id')
    ? questionAndAnswer(fields, recordFile, names)
    : turns(fields, recordFile, names);
  const { id } = fields;
  const own = typeof id === 'string' || typeof id === 'number' ? `${id}#${index}` : `${index}`;
  const text = parts.flatMap((part) => part.text ?? []).join('\n');
  return { id: `${stemOf(recordFile)}/${own}`, media, text, cues: [], parts };
}

interface Conversation {
  readonly media: readonly SourceMedia[];
  readonly parts: readonly SamplePart[];
}

function questionAndAnswer(fields: Fields, recordFile: string, names: MediaNames): Conversation {
  const [video, question, answer] = ['video_id', 'q', 'a'].map((name) => stringOf(fields, [name]));
  if (video === undefined || question === undefined || answer === undefined) {
    throw incomplete('one of video_id, q and a is missing or empty');
  }
  const parts: SamplePart[] = [
    { role: 'user', media: 0 },
    { role: 'user', text: question },
    { role: 'assistant', text: answer },
  ];
  return { media: [names.find(video, { recordFile, kind: 'video' })], parts };
}

const MARKER = /<(image|video)>/;
const ROLES: Readonly<Record<string, NonNullable<SamplePart['role']>>> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  system: 'system',
};

function turns(fields: Fields, recordFile: string, names: MediaNames): Conversation {
  // What waits for its place, by kind.
  const waiting: Record<SourceMedia['kind'], SourceMedia[]> = { image: [], video: [] };
  for (const kind of ['image', 'video'] as const) {
    const values = stringsOf(fields[kind] ?? fields[`${kind}s`] ?? []);
    if (values === undefined) throw incomplete(`its ${kind} is neither a name nor a list of names`);
    waiting[kind] = values.map((value) => names.find(value, { recordFile, kind }));
  }
  const numMedia = { image: waiting.image.length, video: waiting.video.length };
  const said = turnsOf(fields);
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
  if (!said.some(({ role }) => role === 'assistant')) throw incomplete('nobody answers in it');
  return { media, parts };
}

function turnsOf(
  fields: Fields,
): { readonly role: NonNullable<SamplePart['role']>; readonly text: string }[] {
  const list = fields['conversations'] ?? fields['messages'];
  if (!Array.isArray(list) || list.length === 0) throw incomplete('its conversation is empty');
  return list.map((turn: unknown, at) => {
    const { from, value, role = from, content = value } = fieldsOf(turn) ?? {};
    const known = typeof role === 'string' && Object.hasOwn(ROLES, role) ? ROLES[role] : undefined;
    if (known === undefined || typeof content !== 'string') {
      throw incomplete(`its turn ${at + 1} has no text or is from neither human, gpt nor system`);
    }
    // Its question would be taken for an answer, or run into the next one.
    if (known === 'assistant' && content.replaceAll(new RegExp(MARKER, 'g'), '').trim() === '') {
      throw incomplete(`its turn ${at + 1}, an answer, has no words`);
    }
    return { role: known, text: content };
  });
}

function incomplete(what: string): DataError {
  return new DataError('RECORD_INCOMPLETE', what);
}
