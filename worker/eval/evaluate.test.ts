import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { makeIndex } from '../../video/index/make-index.ts';
import { writeIndex } from '../../video/index/sample-index.ts';
import type { Sample } from '../../video/index/sample.ts';
import { openDataAccess } from '../../video/loading/data-access.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../../video/test/films.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { dataAccessOptions } from '../run.ts';
import { RUN_FILES } from '../run-system.ts';
import { makeRunFolder } from '../test/run-folder.ts';
import { evaluate } from './evaluate.ts';
import { questionsOf } from './held-out-questions.ts';

const span = { file: 0, startSeconds: 0, endSeconds: 2 };
const sample = (id: string, own: Partial<Sample>): Sample => ({
  ...{ id, media: [span], text: '', cues: [], decodeMegapixels: 1 },
  ...own,
});

test('captions of the same media are references of one question; samples without words ask nothing', () => {
  const samples = [
    sample('a', { text: 'a ball rolls' }),
    sample('b', { text: 'it is red' }),
    sample('c', { media: [{ ...span, file: 1 }], text: 'a dog' }),
    sample('d', { media: [{ ...span, file: 2 }], text: '  ' }),
  ];
  assert.deepEqual(questionsOf(samples, ''), [
    {
      ...{ id: 'a', sample: 0, question: '', kind: 'caption' },
      references: ['a ball rolls', 'it is red'],
    },
    { id: 'c', sample: 2, question: '', kind: 'caption', references: ['a dog'] },
  ]);
});

test('each question of a conversation has its answer, also where it is asked of all', () => {
  const samples = [
    sample('a', {
      text: 'which colour ? red which shape ? round',
      parts: [
        { role: 'system', text: 'be brief' },
        { role: 'user', media: 0 },
        { role: 'user', text: 'which  colour ?' },
        { role: 'assistant', text: 'red' },
        { role: 'user', text: 'which shape ?' },
        { role: 'assistant', text: 'round' },
      ],
    }),
    sample('b', {
      text: 'which colour ? crimson',
      parts: [
        { role: 'user', text: 'Which colour ?' },
        { role: 'assistant', text: 'crimson' },
      ],
    }),
    sample('c', { media: [{ ...span, file: 1 }], text: 'a dog' }),
  ];
  const colour = {
    ...{ id: 'a', sample: 0, question: 'which colour ?', kind: 'answer' },
    references: ['red', 'crimson'],
  };
  const shape = {
    ...{ id: 'a/2', sample: 0, question: 'which shape ?', kind: 'answer' },
    references: ['round'],
  };
  const dog = { id: 'c', sample: 2, kind: 'caption', references: ['a dog'] };
  assert.deepEqual(questionsOf(samples, ''), [colour, shape, { ...dog, question: '' }]);
  const asked = 'which shape ?';
  assert.deepEqual(questionsOf(samples, asked), [
    { ...shape, id: 'a' },
    { ...dog, question: asked },
  ]);
  assert.deepEqual(questionsOf(samples.slice(0, 2), 'who is it ?'), []);
  // Texts without anything to see have nothing in common by that.
  const texts = ['one', 'two'].map((text) => sample(text, { media: [], text }));
  assert.equal(questionsOf(texts, '').length, 2);
});

test(
  'a run says something of each held-out clip that decodes, and it is scored',
  { skip: WITHOUT_FFMPEG },
  async () => {
    await openCpuEngine();
    const scratch = await temporaryFolder('evaluate');
    const run = join(scratch, 'run');
    await mkdir(run);
    const tiny = [
      ...['engine.name=cpu', 'init=[]', 'train.frozen=[]', 'train.microbatchSize=2'],
      ...['data.frameDiskGibibytes=0', 'data.frameSize=16', 'model.maxAnswerTokens=2'],
      'model.language={width: 16, layers: 1, heads: 2, keyValueHeads: 1, mlpWidth: 24}',
      'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
      ...['data.windows=4', 'data.framesPerWindow=1', 'model.merge=2'],
    ];
    const { config } = await makeRunFolder(run, {
      ...{ recipe: 'minigpt4-video', stage: 'instruction', overrides: tiny },
    });
    const films = join(scratch, 'films', 'held-out');
    await mkdir(films, { recursive: true });
    for (const name of ['a', 'b', 'c']) {
      await makeFilm(join(films, `${name}.mp4`), { seconds: 1, size: '64x48', rate: 20 });
      await writeFile(join(films, `${name}.txt`), `the film ${name}`);
    }
    const access = await openDataAccess(dataAccessOptions(config, join(scratch, 'films'), scratch));
    const index = await makeIndex({
      ...access,
      source: 'folder',
      clipSeconds: config.data.clipSeconds,
      heldOutFraction: 0,
    });
    await access.close();
    await writeIndex(index, join(run, RUN_FILES.index));
    await writeFile(join(films, 'b.mp4'), 'no film any more');

    const said: string[] = [];
    const say = (line: string): unknown => said.push(line);
    const what = { kind: 'held-out' } as const;
    const asked = { folder: run, cacheDir: scratch, what, say };
    const { scores, file, step } = await evaluate({ ...asked, question: '', limit: 10 });
    assert.equal(step, 1);
    assert.deepEqual(said, ['1 of 3 clips do not decode, and do not count']);
    const lines = (await readFile(file, 'utf8')).trim().split('\n');
    const answers = lines.map((line) => JSON.parse(line) as { id: string; references: string[] });
    assert.deepEqual(
      answers.map(({ references }) => references),
      [['the film a'], ['the film c']],
    );
    assert.deepEqual(
      scores.map(({ name, count }) => [name, count]),
      ['BLEU-1', 'BLEU-2', 'BLEU-3', 'BLEU-4', 'ROUGE-L', 'CIDEr-D', 'exact match'].map((name) => [
        name,
        2,
      ]),
    );

    const out = join(scratch, 'said.jsonl');
    await evaluate({ ...asked, question: 'what is it ?', limit: 10, out });
    assert.match(await readFile(out, 'utf8'), /"question":"what is it \?"/);

    const silent = join(scratch, 'silent');
    await mkdir(silent);
    await makeRunFolder(silent, { recipe: 'clip', overrides: ['engine.name=cpu'] });
    const ask = { kind: 'questions', file: out } as const;
    await assert.rejects(
      evaluate({ ...asked, folder: silent, what: ask, question: '', limit: 1 }),
      { code: 'EVALUATE_UNAVAILABLE', message: /clip writes no text.*--retrieval/ },
    );
    const question = 'what is it ?';
    await assert.rejects(evaluate({ ...asked, folder: silent, question, limit: 1 }), {
      code: 'EVALUATE_UNAVAILABLE',
      message: /clip compares clips with texts and answers no question/,
    });
    for (const kind of ['retrieval', 'pairs'] as const)
      await assert.rejects(evaluate({ ...asked, what: { kind }, question, limit: 1 }), {
        code: 'USAGE',
        message: /a question is for held-out clips alone/,
      });
    await assert.rejects(evaluate({ ...asked, what: ask, question, limit: 1 }), { code: 'USAGE' });
    // Where nothing decodes, what the first fails by, also when it is tried again.
    for (const name of ['a', 'c']) await writeFile(join(films, `${name}.mp4`), 'nor this one');
    for (let time = 0; time < 2; time++)
      await assert.rejects(evaluate({ ...asked, question: '', limit: 10, out: `${out}.none` }), {
        message: /a\.mp4 cannot be opened as a video/,
      });
    await assert.rejects(evaluate({ ...asked, what: { kind: 'pairs' }, question: '', limit: 1 }), {
      code: 'EVALUATE_UNAVAILABLE',
      message: /minigpt4-video has no vectors of clips and texts/,
    });
  },
);
