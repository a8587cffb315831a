/** Conversations about pictures and videos: LLaVA's JSON and Video-ChatGPT's. */
import type { SamplePart } from '../index/sample.ts';
import {
  incomplete,
  saidIn,
  sampleOf,
  withMedia,
  withSubtitlesBeside,
  type Conversation,
} from './conversation.ts';
import { fieldsOf, recordSource, stringOf, type Fields, type JsonRecord } from './json-records.ts';
import type { MediaNames } from './media-names.ts';
import type { Source, SourceSample } from './source.ts';

/**
 * Records `{id, image | video, conversations: [{from, value}]}` (LLaVA; also `images`, `videos`, `messages`,
 * `role` and `content`) and `{q, a, video_id}` (Video-ChatGPT), in arrays or JSON Lines. The media take the places of
 * `<image>` and `<video>` in order; where no place is marked they come first. Subtitles beside the first medium are its
 * cues.
 * Source: github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; github.com/mbzuai-oryx/Video-ChatGPT, data/README.md.
 */
export const instructions: Source = withSubtitlesBeside(recordSource('instructions', conversation));

function conversation(
  { value, index }: JsonRecord,
  recordFile: string,
  names: MediaNames,
): SourceSample {
  const fields = fieldsOf(value);
  if (fields === undefined) throw incomplete('it is no object');
  const told = Object.hasOwn(fields, 'video_id')
    ? questionAndAnswer(fields, recordFile, names)
    : turns(fields, recordFile, names);
  return sampleOf(told, fields, { index, recordFile });
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

function turns(fields: Fields, recordFile: string, names: MediaNames): Conversation {
  const said = saidIn(fields['conversations'] ?? fields['messages']);
  const told = withMedia(said, fields, { recordFile, names });
  if (!said.some(({ role }) => role === 'assistant')) throw incomplete('nobody answers in it');
  return told;
}
