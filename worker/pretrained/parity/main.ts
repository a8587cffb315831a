/**
 * How far everything that is loaded from Hugging Face is from Hugging Face itself: models of every architecture, small
 * and randomly initialised, with their gradients and their exports; tokenizers, chat templates, image processors. Prints
 * a JSON line each, at the end a table on stderr, and fails where a difference is beyond its tolerance.
 *
 *     npm run parity [-- NAME... --engine xla|cpu]
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { reportFatal, UsageError } from '../../../proto/errors.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openEngine, type EngineName } from '../../backend/engine.ts';
import { ENGINE_NAMES } from '../../config-fields.ts';
import { compareModel, MODEL_NAMES, TOLERANCE, worstOf } from './compare.ts';
import { compareImages, IMAGE_PROCESSORS } from './images.ts';
import { runPeer } from './peer.ts';
import { compareChats, compareTokenizer, TOKENIZERS } from './texts.ts';

interface Line {
  readonly what: string;
  /** The largest one; of texts, how many differ. */
  readonly difference: number;
  readonly passes: boolean;
  readonly of: string;
  readonly details?: Readonly<Record<string, number>>;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { engine: { type: 'string', default: 'xla' } },
  });
  const engine = ENGINE_NAMES.find((name) => name === values.engine);
  if (engine === undefined)
    throw new UsageError(
      'USAGE',
      `--engine is ${values.engine}, expected one of ${ENGINE_NAMES.join(', ')}`,
    );
  const unknown = positionals.find((name) => !(MODEL_NAMES as readonly string[]).includes(name));
  if (unknown !== undefined) {
    throw new UsageError(
      'USAGE',
      `there is no model ${unknown} to compare; there are ${MODEL_NAMES.join(', ')}`,
    );
  }
  const folder = await mkdtemp(path.join(tmpdir(), 'videoloom-parity-'));
  const lines: Line[] = [];
  const tell = (line: Line): void => {
    lines.push(line);
    process.stdout.write(`${JSON.stringify(line)}\n`);
  };
  try {
    const names = positionals.length > 0 ? positionals : MODEL_NAMES;
    await models({ names, engine, folder }, tell);
    if (positionals.length === 0) await texts(folder, tell);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  for (const { what, difference, of } of lines)
    process.stderr.write(`${what.padEnd(26)} ${difference.toPrecision(2).padStart(8)}  ${of}\n`);
  if (lines.some(({ passes }) => !passes)) process.exitCode = 1;
}

async function models(
  {
    names,
    engine: engineName,
    folder,
  }: { readonly names: readonly string[]; readonly engine: EngineName; readonly folder: string },
  tell: (line: Line) => void,
): Promise<void> {
  await runPeer('parity.py', 'make', folder, ...names);
  const engine = await openEngine({ engine: engineName, cacheDir: userCacheDir(process.env) });
  const found = new Map<string, Record<'parameters' | 'outputs' | 'gradients', number>>();
  try {
    for (const name of names) {
      const exported = path.join(folder, `${name}-exported`);
      const compared = await compareModel(engine, path.join(folder, name), exported);
      found.set(name, {
        parameters: compared.numParameters,
        outputs: worstOf(compared.outputs).difference,
        gradients: worstOf(compared.gradients).difference,
      });
    }
  } finally {
    engine.close();
  }
  const checked = (await runPeer('parity.py', 'check', folder, ...names)).trim().split('\n');
  for (const line of checked) {
    const { name, difference, ...keys } = JSON.parse(line) as {
      readonly name: string;
      readonly difference: number;
    };
    const compared = found.get(name)!;
    const details = { ...compared, exported: difference };
    const worst = Math.max(compared.outputs, compared.gradients, difference);
    tell({
      what: name,
      difference: worst,
      passes: worst <= TOLERANCE && Object.values(keys).flat().length === 0,
      of: 'largest of outputs, gradients and what is exported',
      details,
    });
  }
}

async function texts(folder: string, tell: (line: Line) => void): Promise<void> {
  await runPeer('texts.py', folder);
  const told = (what: string, numCases: number, different: readonly string[]): void => {
    for (const line of different) process.stderr.write(`${what}: ${line}\n`);
    tell({
      what,
      difference: different.length,
      passes: different.length === 0,
      of: `of ${numCases} texts differ`,
    });
  };
  for (const name of TOKENIZERS) {
    const { numCases, different } = await compareTokenizer(path.join(folder, name));
    told(`tokenizer ${name}`, numCases, different);
  }
  const { numCases, different } = await compareChats(folder);
  told('chat templates', numCases, different);
  const images = path.join(folder, 'images');
  await runPeer('images.py', images);
  for (const name of IMAGE_PROCESSORS) {
    const { numPictures, difference } = await compareImages(path.join(images, name));
    const of = `largest of any value of ${numPictures} pictures`;
    tell({ what: `image processor ${name}`, difference, passes: difference <= 3e-7, of });
  }
}

main().catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
