import assert from 'node:assert/strict';
import { readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { instructions } from '../sources/instructions.ts';
import { preferences } from '../sources/preferences.ts';
import { readSource } from '../sources/test/read-source.ts';
import { controlledTruth } from './clip.ts';
import { MOVES, type MovesTruth } from './controlled-truth.ts';
import { generateWorld, type WorldManifest } from './generate.ts';
import { preferencesOf } from './preferences.ts';

const PARAMETERS = { kind: 'moves', seed: 7, width: 64, height: 64, fps: 16, seconds: 2 } as const;

test('what is preferred is how it moves; the other answer is longer, false or beside the point', () => {
  const kinds = new Set<string>();
  for (let index = 0; index < 40; index++) {
    const truth = controlledTruth(PARAMETERS, { split: 'train', index }) as MovesTruth;
    const { colour, shape } = truth.objects[0]!;
    const [brief, isTrue, toThePoint] = preferencesOf(truth);
    for (const { chosen, rejected } of [brief!, isTrue!, toThePoint!]) {
      assert.equal(chosen, truth.motion);
      assert.notEqual(rejected, chosen);
    }
    assert.equal(brief!.rejected, truth.caption.text);
    assert.ok((MOVES as readonly string[]).includes(isTrue!.rejected));
    const facts: readonly string[] = [colour, shape, truth.tones[0]!.sound, truth.word];
    assert.ok(facts.includes(toThePoint!.rejected));
    kinds.add(['colour', 'shape', 'sound', 'word'][facts.indexOf(toThePoint!.rejected)]!);
  }
  assert.equal(kinds.size, 4);
});

test('a world that was made without preferences gets them, and who asks for questions hears nothing of them', async () => {
  const dir = join(await temporaryFolder('preferences'), 'world');
  const options = { dir, kind: 'moves', seed: 7, trainClips: 2, heldOutClips: 1 } as const;
  const make = () => generateWorld({ ...options, numProcesses: 1 });
  await make();
  const [manifest, film, file] = ['world.json', 'train/train-0000.mp4', 'train/preferences.json'];
  const text = await readFile(join(dir, manifest), 'utf8');
  const preferred = await readFile(join(dir, file), 'utf8');
  const whole = JSON.parse(text) as WorldManifest;
  const files = whole.files.filter(({ path }) => !path.endsWith('preferences.json'));
  assert.equal(files.length, whole.files.length - 2);
  await writeFile(join(dir, manifest), `${JSON.stringify({ ...whole, files }, null, 1)}\n`);
  await rm(join(dir, file));
  const { mtimeMs } = await stat(join(dir, film));
  const { numGenerated } = await make();
  assert.equal(numGenerated, 0);
  assert.equal((await stat(join(dir, film))).mtimeMs, mtimeMs);
  assert.equal(await readFile(join(dir, manifest), 'utf8'), text);
  assert.equal(await readFile(join(dir, file), 'utf8'), preferred);

  const [two, one] = [await readSource(preferences, dir), await readSource(instructions, dir)];
  assert.equal(two.samples.length, 3 * 3);
  assert.equal(one.samples.length, 3 * 8);
  assert.deepEqual([...two.faults, ...one.faults], []);
});
