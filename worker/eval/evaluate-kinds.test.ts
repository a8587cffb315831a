import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { before, describe, it } from 'node:test';
import sharp from 'sharp';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { makeIndex } from '../../video/index/make-index.ts';
import { writeIndex } from '../../video/index/sample-index.ts';
import { openDataAccess } from '../../video/loading/data-access.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { dataAccessOptions } from '../run.ts';
import { RUN_FILES } from '../run-system.ts';
import { makeRunFolder } from '../test/run-folder.ts';
import { checkNumScores } from './evaluate-similarity.ts';
import { evaluate, type EvaluateOptions, type EvaluatedWhat } from './evaluate.ts';
import { partialPath } from './evaluation-file.ts';
import { scoreTable } from './scores/bootstrap.ts';
import { scoreFiles } from './scores/score-files.ts';
import { similarityOf } from './vectors.ts';

const NUM_PICTURES = 24;
const WORDS = ['red', 'blue', 'green', 'white'];

describe('an evaluation of a model that compares and writes', () => {
  let [scratch, run, pictures] = ['', '', ''];
  let said: string[] = [];
  const of = (what: EvaluatedWhat, own: Partial<EvaluateOptions> = {}) =>
    evaluate({
      ...{ folder: run, cacheDir: scratch, question: '', limit: 100, what },
      say: (line) => said.push(line),
      ...own,
    });

  before(async () => {
    await openCpuEngine();
    scratch = await temporaryFolder('evaluate-kinds');
    [run, pictures] = [join(scratch, 'run'), join(scratch, 'pictures')];
    await mkdir(run);
    await mkdir(join(pictures, 'held-out'), { recursive: true });
    const small = '{width: 16, layers: 1, heads: 2, mlpWidth: 24';
    const { config } = await makeRunFolder(run, {
      recipe: 'coca',
      overrides: [
        ...['engine.name=cpu', 'train.microbatchSize=2', 'data.frameDiskGibibytes=0'],
        ...['data.frameSize=16', 'data.windows=1', 'model.decoderLayers=1', 'data.decoders=1'],
        `model.vision=${small}, patchSize: 8}`,
        `model.text=${small}, maxTokens: 8, vocabulary: 200}`,
      ],
    });
    for (let i = 0; i < NUM_PICTURES; i++) {
      const background = { r: (i * 37) % 256, g: (i * 91) % 256, b: (i * 11) % 256 };
      const create = { width: 16, height: 16, channels: 3, background } as const;
      const name = join(pictures, 'held-out', String(i));
      await sharp({ create }).png().toFile(`${name}.png`);
      // The same words of several pictures.
      await writeFile(`${name}.txt`, `a ${WORDS[i % 4]} ${WORDS[i % 3]} thing`);
    }
    const access = await openDataAccess(dataAccessOptions(config, pictures, scratch));
    const index = await makeIndex({
      ...{ ...access, source: 'folder', clipSeconds: config.data.clipSeconds },
      heldOutFraction: 0,
    });
    await access.close();
    await writeIndex(index, join(run, RUN_FILES.index));
  });
  it('goes on after kill -9, and ends in the same bytes; another checkpoint is refused', async () => {
    const [undisturbed, killed] = [join(scratch, 'undisturbed.jsonl'), join(scratch, 'k.jsonl')];
    const { scores } = await of({ kind: 'held-out' }, { out: undisturbed });
    const main = new URL('../main.ts', import.meta.url).pathname;
    const args = ['--import', 'tsx', main, 'evaluate', run, '--out', killed];
    const child = spawn(process.execPath, args, { stdio: 'ignore' });
    const exit = once(child, 'exit');
    const numLines = async (): Promise<number> =>
      (await readFile(partialPath(killed), 'utf8').catch(() => '')).split('\n').length - 1;
    while ((await numLines()) < 3 && child.exitCode === null) await delay(2);
    child.kill('SIGKILL');
    await exit;
    const numDone = await numLines();
    assert.ok(numDone >= 3 && numDone <= NUM_PICTURES / 2, `killed after ${numDone} lines`);
    await assert.rejects(stat(killed), 'the whole is not there yet');
    await copyFile(partialPath(killed), join(scratch, 'copy'));

    // Of other questions, and of another checkpoint.
    await assert.rejects(of({ kind: 'held-out' }, { out: killed, limit: 5 }), {
      code: 'EVALUATION_OTHER',
      message: /k\.jsonl\.partial is of another evaluation .*\(asked /,
    });
    const partial = await readFile(partialPath(killed), 'utf8');
    await writeFile(partialPath(killed), partial.replace('"step":1', '"step":2'));
    await assert.rejects(of({ kind: 'held-out' }, { out: killed }), {
      message: /\(step 2, not 1\)/,
    });

    // The last line torn besides.
    const whole = await readFile(join(scratch, 'copy'));
    await writeFile(partialPath(killed), whole.subarray(0, whole.length - 9));
    said = [];
    const resumed = await of({ kind: 'held-out' }, { out: killed });
    assert.deepEqual(said, [`going on: ${numDone - 2} batches are done in ${partialPath(killed)}`]);
    assert.deepEqual(await readFile(killed), await readFile(undisturbed));
    assert.deepEqual(resumed.scores, scores);
    await assert.rejects(stat(partialPath(killed)));
  });

  it('finds clips by captions and captions by clips, as the file that it writes says', async () => {
    const { scores, file } = await of({ kind: 'retrieval' });
    const lines = (await readFile(file, 'utf8')).trim().split('\n');
    const texts = new Set(
      lines.flatMap((line) => (JSON.parse(line) as { captions: string[] }).captions),
    );
    assert.equal(lines.length, NUM_PICTURES);
    assert.equal(texts.size, 12);
    assert.deepEqual(
      scores
        .filter(({ name }) => name.endsWith('recall@1'))
        .map(({ name, count }) => [name, count]),
      [
        ['text recall@1', NUM_PICTURES],
        ['media recall@1', 12],
      ],
    );
    assert.deepEqual(await scoreFiles(['retrieval', file], {}), scores);
  });

  it('tells captions of files apart, and what cannot be told is a tie', async () => {
    const pairs = join(pictures, 'pairs.json');
    await writeFile(join(pictures, 'broken.png'), 'no picture');
    const long = 'a b c d e f g h i j';
    await writeFile(
      pairs,
      JSON.stringify([
        {
          image_0: 'held-out/0.png',
          image_1: 'held-out/1.png',
          caption_0: 'a red',
          caption_1: 'red a',
        },
        {
          image: 'held-out/2.png',
          caption: 'a red thing',
          false_captions: ['a', 'thing'],
          type: 'x',
        },
        // Cut to the same words.
        { image: 'held-out/2.png', caption: long, false_captions: [`${long} k`], type: 'y' },
        { image: 'broken.png', caption: 'a', false_captions: ['b'], type: 'y' },
      ]),
    );
    said = [];
    const { scores, file } = await of({ kind: 'pairs', file: pairs });
    assert.deepEqual(said, ['1 of 4 clips do not decode, and do not count']);
    assert.deepEqual(
      scores.map(({ name, count }) => [name, count]),
      [
        ...['text', 'image', 'group'].map((name) => [name, 1]),
        ...[
          ['x', 1],
          ['y', 1],
          ['mean of types', 2],
        ],
      ],
    );
    const tied = scores.find(({ name }) => name === 'y')!;
    assert.deepEqual([tied.value, tied.ties], [0, 1]);
    assert.deepEqual(await scoreFiles(['pairs', file], {}), scores);
    await assert.rejects(of({ kind: 'pairs', file: pairs, media: join(pictures, 'held-out') }), {
      code: 'MEDIA_MISSING',
      message: /^4 of 4 files are not below .*held-out \(broken\.png, .*, \.\.\.\): .* --media$/,
    });
    await assert.rejects(
      of({ kind: 'pairs', file: await outside(pictures), media: join(pictures, 'held-out') }),
      { code: 'MEDIA_OUTSIDE' },
    );
  });

  it('files with the bytes of one of the run are each one of their own', async () => {
    const copies = join(scratch, 'copies');
    await mkdir(copies);
    for (const name of ['a', 'b', 'c'])
      await copyFile(join(pictures, 'held-out', name === 'c' ? '1.png' : '0.png'), join(copies, `${name}.png`)); // prettier-ignore
    const pairs = join(copies, 'pairs.json');
    const pair = { image_0: 'a.png', image_1: 'b.png', caption_0: 'a red', caption_1: 'a blue' };
    await writeFile(pairs, JSON.stringify([pair, { ...pair, image_0: 'c.png' }]));
    said = [];
    const { scores } = await of({ kind: 'pairs', file: pairs }, { out: join(scratch, 'c.jsonl') });
    assert.deepEqual(said, []);
    assert.equal(scores[0]!.count, 2);
    // What is there and may not be read is not told as missing.
    await symlink('/etc/hostname', join(copies, 'out.png'));
    await writeFile(pairs, JSON.stringify([{ ...pair, image_1: 'out.png' }]));
    await assert.rejects(of({ kind: 'pairs', file: pairs }), { code: 'PATH_OUTSIDE' });
  });

  it('says where nothing is scored, and refuses more scores than can be read back', async () => {
    const questions = join(pictures, 'unlabelled.json');
    await writeFile(questions, JSON.stringify([{ image: 'held-out/0.png', question: 'What ?' }]));
    said = [];
    const { scores } = await of({ kind: 'questions', file: questions });
    assert.deepEqual(said, ['nothing is scored: no question has a label or references']);
    assert.equal(scoreTable(scores), '');
    checkNumScores(1000, 5000);
    assert.throws(checkNumScores.bind(undefined, 40_000, 200_000), {
      code: 'EVALUATION_TOO_LARGE',
      message: /40000 clips with 200000 captions have 8000000000 scores, .* --clips/,
    });
  });

  it('sums that differ by less than float32 tells are ties', () => {
    const [text, near] = [Float32Array.from([1, 1, 1e-9]), Float32Array.from([1, 1, 2e-9])];
    const clip = Float32Array.from([1 / 3, 1, 1]);
    assert.equal(similarityOf(clip, text), similarityOf(clip, near));
    // In nine digits.
    assert.equal(similarityOf(clip, text), 1.33333337);
  });

  it('answers questions of a file in the form that is scored', async () => {
    const questions = join(scratch, 'pope.jsonl');
    const asked = [0, 1, 2].map((i) => ({
      ...{ question_id: i + 1, image: `${i}.png`, text: `Is there a ${WORDS[i]} thing?` },
      ...{ label: i === 1 ? 'no' : 'yes', category: 'random' },
    }));
    await writeFile(questions, asked.map((each) => `${JSON.stringify(each)}\n`).join(''));
    const media = join(pictures, 'held-out');
    const { scores, file } = await of({ kind: 'questions', file: questions, media });
    assert.equal(scores.find(({ name }) => name === 'random accuracy')?.count, 3);
    assert.deepEqual(await scoreFiles(['pope', file], {}), scores);
    assert.deepEqual(await scoreFiles(['pope', file, questions], {}), scores);
  });
});

/** Pairs with a path that leads out of the folder below. */
async function outside(folder: string): Promise<string> {
  const path = join(folder, 'outside.json');
  await writeFile(
    path,
    JSON.stringify([{ image: '../a.png', caption: 'a', negative_caption: 'b' }]),
  );
  return path;
}
