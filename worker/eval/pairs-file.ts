/** Captions that are to be told apart, from files of Winoground, ARO, SugarCrepe and their like. */
import { basename, extname } from 'node:path';
import * as z from 'zod';
import {
  idForm,
  invalid,
  parse,
  readJson,
  type JsonContent,
  type Placed,
} from './scores/records.ts';

/** Two captions of two media, which are made of the same words. */
export interface CrossPair {
  readonly kind: 'cross';
  readonly id: string;
  /** Paths, or ids of samples. */
  readonly media: readonly [string, string];
  readonly captions: readonly [string, string];
}

/** A medium with its caption and others that are false. */
export interface CaptionList {
  readonly kind: 'list';
  readonly id: string;
  readonly media: readonly [string];
  /** What the false ones are made by. */
  readonly type: string;
  /** The true one first. */
  readonly captions: readonly string[];
}

export type PairItem = CrossPair | CaptionList;

const crossForm = z.looseObject({
  id: idForm.optional(),
  image_0: z.string(),
  image_1: z.string(),
  caption_0: z.string(),
  caption_1: z.string(),
});

const listForm = z.looseObject({
  id: idForm.optional(),
  image: z.string().optional(),
  video: z.string().optional(),
  image_path: z.string().optional(),
  filename: z.string().optional(),
  caption: z.string().optional(),
  true_caption: z.string().optional(),
  negative_caption: z.string().optional(),
  false_caption: z.string().optional(),
  false_captions: z.array(z.string()).optional(),
  type: z.string().optional(),
  relation_name: z.string().optional(),
  attributes: z.array(z.string()).optional(),
  bbox_x: z.unknown().optional(),
});

/**
 * Records of JSON or JSON Lines, or SugarCrepe's object of records by number: `image_0`, `image_1`, `caption_0` and
 * `caption_1`, or `image`, `video`, `image_path` or `filename` with `caption` or `true_caption` and `negative_caption`,
 * `false_caption` or `false_captions`. Their type is `type`, ARO's `relation_name` or `attributes`, or the file's name.
 * False captions that are the true one are left out, and such as come again.
 *
 * @throws UsageError SCORE_FILE_INVALID
 */
export async function readPairs(path: string): Promise<PairItem[]> {
  const placed = recordsIn(await readJson(path), path);
  if (placed.length === 0) throw invalid(path, 'there is no record in it');
  const items = placed.flatMap(([record, at], number) =>
    itemOf(record, at, {
      id: String(number),
      type: basename(path, extname(path)),
    }),
  );
  if (items.length === 0)
    throw invalid(path, 'in all of its records the false captions are the true one');
  return items;
}

function recordsIn(content: JsonContent, path: string): readonly Placed[] {
  if ('lines' in content) return content.lines;
  const whole = content.whole as object;
  // One line of JSON Lines is also an object of JSON. A record names its media; what holds records holds nothing else.
  const isOne =
    !Array.isArray(whole) &&
    (typeof whole !== 'object' || Object.values(whole).some((value) => typeof value === 'string'));
  if (isOne) return [[whole, `${path}#0`]];
  return Object.entries(whole).map(([key, record]: [string, unknown]) => [
    record,
    `${path}#${key}`,
  ]);
}

function itemOf(
  record: unknown,
  at: string,
  fallback: { readonly id: string; readonly type: string },
): PairItem[] {
  if (typeof record === 'object' && record !== null && 'image_0' in record) {
    const { id = fallback.id, ...own } = parse(crossForm, record, at);
    const media = [own.image_0, own.image_1] as const;
    return [{ kind: 'cross', id, media, captions: [own.caption_0, own.caption_1] }];
  }
  const { id = fallback.id, ...own } = parse(listForm, record, at);
  const medium = own.image ?? own.video ?? own.image_path ?? own.filename;
  if (medium === undefined)
    throw invalid(at, 'it has no image_0, image, video, image_path or filename');
  if (own.bbox_x !== undefined)
    throw invalid(at, 'its caption is of a box of its picture: cut the boxes out, and name these');
  const caption = own.true_caption ?? own.caption;
  const wrong = own.false_captions ?? [own.false_caption ?? own.negative_caption];
  const others = [...new Set(wrong)].filter(
    (one) => one !== undefined && one !== caption,
  ) as string[];
  if (caption === undefined) throw invalid(at, 'it has neither caption nor true_caption');
  // A shuffled caption may be as it was.
  if (others.length === 0 && wrong.some((one) => one !== undefined)) return [];
  if (others.length === 0) throw invalid(at, 'it has no false caption');
  const type = own.type ?? own.relation_name ?? own.attributes?.join('_') ?? fallback.type;
  return [{ kind: 'list', id, media: [medium], type, captions: [caption, ...others] }];
}
