import * as z from 'zod';
import { UsageError } from '../../../proto/errors.ts';
import { invalid, keyForm, keyOf, parse, recordsOf } from './records.ts';
import type { Answered } from './score.ts';

const text = z.union([
  z.string(),
  z.object({ answer: z.string() }).transform((each) => each.answer),
]);

/** One record of what was said. */
const predictionForm = z.looseObject({
  ...keyForm,
  caption: z.string().optional(),
  answer: z.string().optional(),
});

const referenceForm = z.looseObject({
  ...keyForm,
  caption: z.string().optional(),
  captions: z.array(z.string()).optional(),
  references: z.array(z.string()).optional(),
  answer: z.string().optional(),
  answers: z.array(text).optional(),
});

/**
 * What was said and what people said, from files of JSON or JSON Lines: a list of records, or COCO's and VQA's object with
 * `annotations`. Records of both have an `id`, `image_id` or `question_id`; predictions a `caption` or `answer`, references
 * a `caption`, `captions`, `references`, `answer` or `answers`; several records of one id are several references. Without
 * `references` the predictions bring them, as `videoloom evaluate` writes them.
 *
 * @throws UsageError SCORE_FILE_INVALID, naming the file and the record; SCORE_FILES_DIFFER where one has ids that the
 *   other has not
 */
export async function readAnswered(
  predictions: string,
  references: string | undefined,
): Promise<Answered[]> {
  const said = new Map<string, string>();
  const known = new Map<string, string[]>();
  for (const [record, at] of await recordsOf(predictions)) {
    const found = parse(predictionForm, record, at);
    const key = keyOf(found, at);
    const answer = found.caption ?? found.answer;
    if (answer === undefined) throw invalid(at, 'it has neither caption nor answer');
    if (said.has(key)) throw invalid(at, `a second one for ${key}`);
    said.set(key, answer);
    if (references === undefined) addReferences(known, key, record, at);
  }
  if (references !== undefined) {
    for (const [record, at] of await recordsOf(references)) {
      addReferences(known, keyOf(parse(referenceForm, record, at), at), record, at);
    }
  }
  const lacking = [...known.keys()].filter((key) => !said.has(key));
  const unknown = [...said.keys()].filter((key) => !known.has(key));
  if (lacking.length + unknown.length > 0)
    throw differ(predictions, references ?? predictions, { lacking, unknown });
  if (said.size === 0) throw invalid(predictions, 'there is no record in it');
  return [...said].map(([key, answer]) => ({ id: key, answer, references: known.get(key)! }));
}

function addReferences(
  known: Map<string, string[]>,
  key: string,
  record: unknown,
  at: string,
): void {
  const { caption, captions, references, answer, answers } = parse(referenceForm, record, at);
  const own =
    references ?? captions ?? answers ?? [caption ?? answer].filter((one) => one !== undefined);
  if (own.length === 0)
    throw invalid(at, 'it has no reference: references, captions, caption, answers or answer');
  known.set(key, [...(known.get(key) ?? []), ...own]);
}

export function differ(
  predictions: string,
  references: string,
  {
    lacking,
    unknown,
  }: { readonly lacking: readonly string[]; readonly unknown: readonly string[] },
): UsageError {
  const parts = [
    [lacking, `of ${references} are not in ${predictions}`],
    [unknown, `of ${predictions} are not in ${references}`],
  ] as const;
  const said = parts
    .filter(([ids]) => ids.length > 0)
    .map(([ids, where]) => `${ids.length} ids ${where} (${ids.slice(0, 3).join(', ')})`);
  return new UsageError(
    'SCORE_FILES_DIFFER',
    `${said.join('; ')}: a score is of all that was asked, give both the same ids`,
  );
}
