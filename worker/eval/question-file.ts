/** Questions about pictures and films of one's own, from files of POPE and their like. */
import * as z from 'zod';
import { yesNoForm } from './scores/pope-files.ts';
import { idForm, invalid, parse, recordsOf } from './scores/records.ts';

/** A question, and what is kept of its record for those who score the answer. */
export interface FileQuestion {
  readonly media: string;
  readonly question: string;
  readonly kept: {
    readonly id: string;
    readonly question: string;
    readonly label?: 'yes' | 'no' | undefined;
    readonly category?: string | undefined;
    readonly references?: readonly string[] | undefined;
  };
}

const form = z.looseObject({
  id: idForm.optional(),
  question_id: idForm.optional(),
  image: z.string().optional(),
  video: z.string().optional(),
  path: z.string().optional(),
  question: z.string().optional(),
  text: z.string().optional(),
  label: yesNoForm.optional(),
  category: z.string().optional(),
  references: z.array(z.string()).optional(),
});

/**
 * Records of JSON or JSON Lines with `image`, `video` or `path`, and `question` or `text`. `question_id` or `id`, and for
 * scores `label` (yes or no) with a `category`, or `references`, are kept.
 * @throws UsageError SCORE_FILE_INVALID
 */
export async function readQuestions(path: string): Promise<FileQuestion[]> {
  const ids = new Set<string>();
  const questions = (await recordsOf(path)).map(([record, at], number): FileQuestion => {
    const {
      id,
      question_id: own,
      image,
      video,
      path: file,
      question,
      text,
      ...rest
    } = parse(form, record, at);
    const media = image ?? video ?? file;
    const asked = question ?? text;
    if (media === undefined) throw invalid(at, 'it has no image, video or path');
    if (asked === undefined) throw invalid(at, 'it has no question or text');
    const key = own ?? id ?? String(number);
    if (ids.has(key)) throw invalid(at, `a second one for ${key}`);
    ids.add(key);
    const { label, category, references } = rest;
    const kept = { id: key, question: asked, label, category, references };
    return { media, question: asked, kept };
  });
  if (questions.length === 0) throw invalid(path, 'there is no record in it');
  return questions;
}
