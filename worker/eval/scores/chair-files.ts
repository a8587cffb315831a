import { readFile } from 'node:fs/promises';
import * as z from 'zod';
import { messageOf, UsageError } from '../../../proto/errors.ts';
import { differ } from './answer-files.ts';
import type { ObjectCaption } from './chair.ts';
import { openObjectFinder, type ObjectFinder } from './object-mentions.ts';
import { idForm, invalid, keyForm, keyOf, parse, readJson, recordsOf } from './records.ts';

const captionForm = z.looseObject({
  ...keyForm,
  caption: z.string().optional(),
  answer: z.string().optional(),
});

const truthForm = z.looseObject({ ...keyForm, objects: z.array(z.string()) });

const byImage = z.record(z.string(), z.array(z.string()));

const cocoForm = z.looseObject({
  annotations: z.array(z.looseObject({ image_id: idForm, category_id: idForm })),
  categories: z.array(z.looseObject({ id: idForm, name: z.string() })),
});

export interface ChairFiles {
  /** Records with `caption` or `answer`. */
  readonly captions: string;
  /** `{image: [object, ...]}`, records with `objects`, or COCO's instances. */
  readonly objects: string;
  /** Captions by people, whose objects are there too. */
  readonly references?: string | undefined;
  /** An object a line, all its names with commas between them; undefined: the objects' names as they are. */
  readonly synonyms?: string | undefined;
}

/** @throws UsageError SCORE_FILE_INVALID, SCORE_FILES_DIFFER where a caption is of something of which nothing is known */
export async function readObjectCaptions(files: ChairFiles): Promise<ObjectCaption[]> {
  const truth = await readTruth(files.objects);
  const finder = openObjectFinder(
    files.synonyms === undefined
      ? [...new Set([...truth.values()].flat())].map((name) => [name])
      : await readSynonyms(files.synonyms),
  );
  const there = new Map(
    [...truth].map(([key, names]) => [
      key,
      new Set(names.map((name) => objectOf(finder, name, files))),
    ]),
  );
  if (files.references !== undefined) {
    for (const [key, caption] of await readCaptions(files.references)) {
      const known = there.get(key) ?? new Set();
      for (const name of finder.mentions(caption)) known.add(name);
      there.set(key, known);
    }
  }
  const captions = await readCaptions(files.captions);
  if (captions.length === 0) throw invalid(files.captions, 'there is no record in it');
  const unknown = captions.map(([key]) => key).filter((key) => !there.has(key));
  // Objects of other pictures are no fault: those of a data set are in one file.
  if (unknown.length > 0) throw differ(files.captions, files.objects, { lacking: [], unknown });
  return captions.map(([key, caption]) => ({
    mentions: finder.mentions(caption),
    truth: there.get(key)!,
  }));
}

function objectOf(finder: ObjectFinder, name: string, { objects, synonyms }: ChairFiles): string {
  const object = finder.objectOf(name);
  if (object === undefined)
    throw invalid(objects, `"${name}" is not among the names of ${String(synonyms)}: add it there`);
  return object;
}

async function readCaptions(path: string): Promise<[key: string, caption: string][]> {
  return (await recordsOf(path)).map(([record, at]) => {
    const found = parse(captionForm, record, at);
    const caption = found.caption ?? found.answer;
    if (caption === undefined) throw invalid(at, 'it has neither caption nor answer');
    return [keyOf(found, at), caption];
  });
}

/** Names of what is to be seen, by picture. */
async function readTruth(path: string): Promise<Map<string, string[]>> {
  const truth = new Map<string, string[]>();
  const add = (key: string, names: readonly string[]): void => {
    truth.set(key, [...(truth.get(key) ?? []), ...names]);
  };
  const content = await readJson(path);
  const whole = 'whole' in content ? content.whole : undefined;
  const coco = cocoForm.safeParse(whole);
  const plain = byImage.safeParse(whole);
  if (coco.success) {
    const names = new Map(coco.data.categories.map(({ id, name }) => [id, name]));
    for (const { image_id: image, category_id: category } of coco.data.annotations) {
      const name = names.get(category);
      if (name === undefined) throw invalid(path, `there is no category ${category}`);
      add(image, [name]);
    }
  } else if (plain.success) for (const [key, names] of Object.entries(plain.data)) add(key, names);
  else
    for (const [record, at] of await recordsOf(path)) {
      const found = parse(truthForm, record, at);
      add(keyOf(found, at), found.objects);
    }
  return truth;
}

async function readSynonyms(path: string): Promise<string[][]> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw new UsageError('SCORE_FILE_INVALID', `${path} cannot be read: ${messageOf(error)}`);
  });
  const objects = text
    .split('\n')
    .map((line) => line.split(',').map((name) => name.trim()))
    .map((names) => names.filter((name) => name !== ''))
    .filter((names) => names.length > 0);
  if (objects.length === 0) throw invalid(path, 'there is no name in it');
  return objects;
}
