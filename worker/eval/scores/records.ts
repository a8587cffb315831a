/** Records of files of JSON or JSON Lines, each with its place for messages. */
import { readFile } from 'node:fs/promises';
import * as z from 'zod';
import { messageOf, UsageError } from '../../../proto/errors.ts';

/** A name or a number. */
export const idForm = z.union([z.string(), z.number()]).transform(String);

/** What a record is known by: its id, or COCO's `image_id` or VQA's `question_id`. */
export const keyForm = {
  id: idForm.optional(),
  image_id: idForm.optional(),
  question_id: idForm.optional(),
};

type Keyed = z.infer<z.ZodObject<typeof keyForm>>;

/** What a record is of. @throws UsageError SCORE_FILE_INVALID */
export function keyOf(
  { id: own, image_id: image, question_id: question }: Keyed,
  at: string,
): string {
  const key = question ?? image ?? own;
  if (key === undefined) throw invalid(at, 'it has no id, image_id or question_id');
  return key;
}

/** A record and its place: the file's line or its number in it. */
export type Placed = readonly [record: unknown, at: string];

/** What is in a file: the value of one of JSON, or the records of JSON Lines. */
export type JsonContent = { readonly whole: unknown } | { readonly lines: readonly Placed[] };

/** Without the byte order mark that some editors put. @throws UsageError SCORE_FILE_INVALID */
export async function readText(path: string): Promise<string> {
  try {
    return (await readFile(path, 'utf8')).replace(/^\uFEFF/, '');
  } catch (error) {
    throw new UsageError('SCORE_FILE_INVALID', `${path} cannot be read: ${messageOf(error)}`);
  }
}

/** @throws UsageError SCORE_FILE_INVALID */
export async function readJson(path: string): Promise<JsonContent> {
  const content = await readText(path);
  const whole = parsedJson(content);
  if (whole !== undefined) return { whole };
  const lines = content.split('\n').flatMap((line, at): Placed[] => {
    if (line.trim() === '') return [];
    const record = parsedJson(line);
    if (record === undefined) throw invalid(`${path}:${at + 1}`, 'it is no JSON');
    return [[record, `${path}:${at + 1}`]];
  });
  return { lines };
}

/** Each record with its place; of an object with `annotations` those. */
export async function recordsOf(path: string): Promise<readonly Placed[]> {
  const content = await readJson(path);
  if ('lines' in content) return content.lines;
  const { whole } = content;
  const annotations = (whole as { annotations?: unknown }).annotations ?? whole;
  const list = Array.isArray(annotations) ? (annotations as unknown[]) : [annotations];
  return list.map((record, at) => [record, `${path}#${at}`]);
}

function parsedJson(content: string): unknown {
  try {
    return JSON.parse(content) ?? {};
  } catch {
    return undefined;
  }
}

export function parse<T>(form: z.ZodType<T>, record: unknown, at: string): T {
  const result = form.safeParse(record);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  const where = issue.path.length === 0 ? 'it' : issue.path.join('.');
  throw invalid(at, `${where} is ${JSON.stringify(valueAt(record, issue.path))}: ${issue.message}`);
}

function valueAt(record: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key],
    record,
  );
}

export function invalid(at: string, why: string): UsageError {
  return new UsageError('SCORE_FILE_INVALID', `${at}: ${why}`);
}
