import * as z from 'zod';
import { differ } from './answer-files.ts';
import type { YesNoAnswered } from './pope.ts';
import { idForm, invalid, parse, recordsOf, type Placed } from './records.ts';

const ids = { id: idForm.optional(), question_id: idForm.optional() };

/** LLaVA names the answer `text`, POPE the question. */
const saidForm = z.looseObject({
  ...ids,
  answer: z.string().optional(),
  text: z.string().optional(),
  question: z.string().optional(),
});

/** In any case, with spaces about it. */
export const yesNoForm = z
  .string()
  .transform((label) => label.trim().toLowerCase())
  .pipe(z.enum(['yes', 'no'], 'expected yes or no'));

const labelForm = z.looseObject({
  ...ids,
  label: yesNoForm,
  category: z.string().optional(),
  text: z.string().optional(),
  question: z.string().optional(),
});

/**
 * Answers and labels from files of JSON or JSON Lines: answers with an `answer`, or LLaVA's `text`; POPE's questions with
 * a `label` of yes or no and, where they have one, a `category`. They belong together by `question_id` or `id`; answers
 * without any, as POPE's own, stand in the order of the labels. Without `labels` the answers bring them, as
 * `videoloom evaluate` writes them.
 *
 * @throws UsageError SCORE_FILE_INVALID, SCORE_FILES_DIFFER
 */
export async function readYesNo(
  answers: string,
  labels: string | undefined,
): Promise<YesNoAnswered[]> {
  const said = await recordsOf(answers);
  if (said.length === 0) throw invalid(answers, 'there is no record in it');
  if (labels === undefined) return said.map(([record, at]) => answeredOf([record, at], record, at));
  const asked = await recordsOf(labels);
  const keys = said.map(([record, at]) => keyOf(record, at));
  if (keys.every((key) => key === undefined)) return inOrder(said, asked, { answers, labels });
  const known = byKey(asked);
  const own = byKey(said);
  const unknown = [...own.keys()].filter((key) => !known.has(key));
  const lacking = [...known.keys()].filter((key) => !own.has(key));
  if (unknown.length + lacking.length > 0) throw differ(answers, labels, { lacking, unknown });
  return [...own].map(([key, placed]) => answeredOf(placed, ...known.get(key)!));
}

function inOrder(
  said: readonly Placed[],
  asked: readonly Placed[],
  { answers, labels }: { readonly answers: string; readonly labels: string },
): YesNoAnswered[] {
  if (said.length !== asked.length)
    throw invalid(
      answers,
      `it has ${said.length} answers without ids, which stand for the ${asked.length} questions of ${labels} in their ` +
        'order: give one of each',
    );
  return said.map((placed, i) => {
    const [record, at] = placed;
    const { question } = parse(saidForm, record, at);
    const label = parse(labelForm, ...asked[i]!);
    const own = label.text ?? label.question;
    const differs = question !== undefined && own !== undefined && plain(question) !== plain(own);
    if (differs) throw invalid(at, `it answers "${question}", and ${asked[i]![1]} asks "${own}"`);
    return answeredOf(placed, ...asked[i]!);
  });
}

function plain(question: string): string {
  return question.toLowerCase().replaceAll(/\s+/g, ' ').trim();
}

function keyOf(record: unknown, at: string): string | undefined {
  const { id, question_id: question } = parse(z.looseObject(ids), record, at);
  return question ?? id;
}

function byKey(records: readonly Placed[]): Map<string, Placed> {
  const found = new Map<string, Placed>();
  for (const [record, at] of records) {
    const key = keyOf(record, at);
    if (key === undefined) throw invalid(at, 'it has no id or question_id');
    if (found.has(key)) throw invalid(at, `a second one for ${key}`);
    found.set(key, [record, at]);
  }
  return found;
}

function answeredOf([record, at]: Placed, label: unknown, labelAt: string): YesNoAnswered {
  const { answer, text } = parse(saidForm, record, at);
  const said = answer ?? text;
  if (said === undefined) throw invalid(at, 'it has neither answer nor text');
  const { label: truth, category = '' } = parse(labelForm, label, labelAt);
  return { answer: said, isYes: truth === 'yes', category };
}
