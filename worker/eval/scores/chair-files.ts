import * as z from 'zod';
import { differ } from './answer-files.ts';
import type { ObjectCaption } from './chair.ts';
import { hasWords, openObjectFinder, type ObjectFinder } from './object-mentions.ts';
import {
  idForm,
  invalid,
  keyForm,
  keyOf,
  parse,
  readJson,
  readText,
  recordsOf,
} from './records.ts';

const captionForm = z.looseObject({
  ...keyForm,
  caption: z.string().optional(),
  answer: z.string().optional(),
});

const namesForm = z.array(z.string().refine(hasWords, 'an object has a name of letters or digits'));

const truthForm = z.looseObject({ ...keyForm, objects: namesForm });

/** Its many records are parsed one by one. */
const cocoForm = z.looseObject({
  images: z.array(z.unknown()).optional(),
  annotations: z.array(z.unknown()),
  categories: z.array(z.looseObject({ id: idForm, name: z.string().refine(hasWords) })),
});
const imageForm = z.looseObject({ id: idForm });
const annotationForm = z.looseObject({ image_id: idForm, category_id: idForm });

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

/** Names of what is to be seen, by picture; of COCO's pictures without a box none. */
async function readTruth(path: string): Promise<Map<string, string[]>> {
  const truth = new Map<string, string[]>();
  const add = (key: string, names: readonly string[]): void => {
    const known = truth.get(key) ?? [];
    known.push(...names);
    truth.set(key, known);
  };
  const content = await readJson(path);
  const whole = 'whole' in content ? (content.whole as object) : undefined;
  // By its shape alone: a form that fails for each of COCO's many records has more to say than the stack holds.
  if (whole === undefined || isRecords(whole))
    for (const [record, at] of await recordsOf(path)) {
      const found = parse(truthForm, record, at);
      add(keyOf(found, at), found.objects);
    }
  else if ('annotations' in whole) {
    const coco = parse(cocoForm, whole, path);
    for (const [i, image] of (coco.images ?? []).entries())
      add(parse(imageForm, image, `${path}#images.${i}`).id, []);
    const names = new Map(coco.categories.map(({ id, name }) => [id, name]));
    for (const [i, annotation] of coco.annotations.entries()) {
      const at = `${path}#annotations.${i}`;
      const { image_id: image, category_id: category } = parse(annotationForm, annotation, at);
      const name = names.get(category);
      if (name === undefined) throw invalid(at, `there is no category ${category}`);
      add(image, [name]);
    }
  } else
    for (const [key, names] of Object.entries(whole))
      add(key, parse(namesForm, names, `${path}#${key}`));
  return truth;
}

/** A list of records or a single one, not COCO's object nor `{image: [object, ...]}`. */
function isRecords(whole: object): boolean {
  if (typeof whole !== 'object' || Array.isArray(whole)) return true;
  if ('annotations' in whole) return !('categories' in whole);
  return 'objects' in whole && Object.keys(keyForm).some((key) => key in whole);
}

async function readSynonyms(path: string): Promise<string[][]> {
  const objects = (await readText(path))
    .split('\n')
    .map((line) => line.split(',').map((name) => name.trim()))
    .map((names) => names.filter((name) => name !== ''))
    .filter((names) => names.length > 0);
  if (objects.length === 0) throw invalid(path, 'there is no name in it');
  return objects;
}
