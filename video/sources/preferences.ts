/** Two answers to one question about a picture or a video, of which one is preferred. */
import {
  incomplete,
  roleOf,
  saidIn,
  sampleOf,
  withMedia,
  withSubtitlesBeside,
  wordsOf,
  type Said,
} from './conversation.ts';
import { fieldsOf, recordSource, type Fields, type JsonRecord } from './json-records.ts';
import type { MediaNames } from './media-names.ts';
import type { Source, SourceSample } from './source.ts';

/**
 * Records `{image | video, conversations, output_1, output_2, preference: 1 | 2}` (LLaVA-RLHF, whose conversations end
 * with an answer that stands for both outputs) and `{image | video, prompt, chosen, rejected}` (TRL, LLaVA-Hound; also
 * `question`, `conversations` and `messages`), in arrays or JSON Lines. Each of `prompt`, `chosen` and `rejected` is a text
 * or a list of turns; without a prompt it is what `chosen` has before its last turn. Media stand as in instructions. The
 * sample is the conversation with the preferred answer; the other one is `rejected` of that part. What was said before the
 * last question is kept here and not read by the systems, as of all conversations.
 * Source: github.com/llava-rlhf/LLaVA-RLHF, RLHF/data_utils/data_utils_rm.py; huggingface.co/docs/trl, dataset_formats.
 */
export const preferences: Source = withSubtitlesBeside(recordSource('preferences', preference));

function preference(
  { value, index }: JsonRecord,
  recordFile: string,
  names: MediaNames,
): SourceSample {
  const fields = fieldsOf(value);
  if (fields === undefined) throw incomplete('it is no object');
  const [chosen, rejected] = Object.hasOwn(fields, 'chosen')
    ? [answerOf(fields, 'chosen'), answerOf(fields, 'rejected')]
    : outputsOf(fields);
  if (chosen === rejected) throw incomplete('its two answers are the same');
  const { media, parts } = withMedia(promptOf(fields), fields, { recordFile, names });
  const told = { media, parts: [...parts, { role: 'assistant', text: chosen, rejected } as const] };
  return sampleOf(told, fields, { index, recordFile });
}

/** The preferred one first. */
function outputsOf(fields: Fields): readonly [chosen: string, rejected: string] {
  const outputs = [answerOf(fields, 'output_1'), answerOf(fields, 'output_2')] as const;
  const { preference: preferred } = fields;
  if (preferred === 1) return outputs;
  if (preferred === 2) return [outputs[1], outputs[0]];
  throw incomplete('its preference is neither 1 nor 2');
}

/** A text, a turn, or the last of a list of turns. */
function answerOf(fields: Fields, name: string): string {
  const given = fields[name];
  const turn: unknown = Array.isArray(given) ? given.at(-1) : given;
  const { value, content = value } = fieldsOf(turn) ?? {};
  const words = wordsOf(content ?? turn)?.trim() ?? '';
  if (words === '') throw incomplete(`its ${name} is missing or empty`);
  return words;
}

/** What stands before the two answers. */
function promptOf(fields: Fields): readonly Said[] {
  const { conversations, messages, question, prompt, chosen } = fields;
  const given = prompt ?? question ?? conversations ?? messages;
  if (typeof given === 'string' && given.trim() !== '') return [{ role: 'user', text: given }];
  if (given === undefined && Array.isArray(chosen)) return saidIn(chosen.slice(0, -1));
  // LLaVA-RLHF's have a list in the list.
  const list: unknown = Array.isArray(given) && Array.isArray(given[0]) ? given[0] : given;
  if (!Array.isArray(list)) throw incomplete('nobody asks in it');
  return saidIn(list.slice(0, list.findLastIndex((turn) => roleOf(turn) !== 'assistant') + 1));
}
