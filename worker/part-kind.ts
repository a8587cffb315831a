/** What parts of models compute that the shapes of their weights do not tell: two that differ in it fit without a word. */
import type { EncoderSizes } from './layers/encoder.ts';
import type { Cm3leonSizes } from './models/cm3leon.ts';
import type { LlamaConfig } from './models/llama.ts';
import type { OptConfig } from './models/opt.ts';

/** By what people call it: `heads`, `epsilon`, `activation`. */
export type PartKind = Readonly<Record<string, string | number>>;

/** Of a decoder whose table of words is its head too: 'yes'. A head of its own can begin as that, so it is no difference. */
const TIED = 'tied';

/** By the path of the part; the longest path that a parameter is below counts. */
export type PartKinds = Readonly<Record<string, PartKind>>;

export function encoderKind(
  { numHeads, activation, epsilon }: EncoderSizes,
  norms: 'before' | 'behind' = 'before',
): PartKind {
  return { heads: numHeads, activation, epsilon, norms };
}

export function llamaKind(config: LlamaConfig): PartKind {
  const { numHeads, numKeyValueHeads, epsilon, ropeTheta, ropeScaling, isTied } = config;
  return {
    ...{ decoder: 'llama', heads: numHeads, keyValueHeads: numKeyValueHeads, epsilon, ropeTheta },
    [TIED]: isTied ? 'yes' : 'no',
    ropeScaling: ropeScaling === undefined ? 'none' : JSON.stringify(ropeScaling),
  };
}

export function optKind({ numHeads, activation, normOrder }: OptConfig): PartKind {
  return { decoder: 'opt', heads: numHeads, activation, norms: normOrder };
}

export function cm3leonKind({ numHeads }: Cm3leonSizes): PartKind {
  return { decoder: 'cm3leon', heads: numHeads };
}

/** The kind of the part that a parameter is in. */
export function kindAt(kinds: PartKinds, path: string): PartKind | undefined {
  const parts = path.split('/');
  for (let count = parts.length; count >= 0; count--) {
    const kind = kinds[parts.slice(0, count).join('/')];
    if (kind !== undefined) return kind;
  }
  return undefined;
}

/** The table of words of each decoder that has no other head, by the name that the head would have. */
export function tiedHeads(kinds: PartKinds): Map<string, string> {
  const paths = Object.keys(kinds).filter((path) => kinds[path]![TIED] === 'yes');
  const below = (path: string, name: string): string => (path === '' ? name : `${path}/${name}`);
  return new Map(paths.map((path) => [below(path, 'head/kernel'), below(path, 'embedding')]));
}

/** What differs of that which both tell: `heads is 12 there and 8 in this model`. */
export function kindDifferences(there: PartKind, here: PartKind): string[] {
  return Object.keys(there)
    .filter((key) => key !== TIED && here[key] !== undefined && here[key] !== there[key])
    .map((key) => `${key} is ${there[key]!} there and ${here[key]!} in this model`);
}
