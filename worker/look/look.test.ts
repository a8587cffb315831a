import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../../video/test/films.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { plainAnswer } from '../eval/scores/score.ts';
import { evaluate } from '../eval/evaluate.ts';
import { look } from './look.ts';
import { sample } from './sample.ts';
import { TEST_SAMPLES } from '../test/open-system.ts';
import { makeRunFolder } from '../test/run-folder.ts';

describe('what a model guesses of held-out clips', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let folder: string;
  before(async () => {
    await openCpuEngine();
    scratch = await temporaryFolder('look');
    folder = join(scratch, 'run');
    await mkdir(folder);
    const small =
      'model={width: 16, layers: 1, heads: 2, visualBranching: 4, visualComponents: 24}';
    await makeRunFolder(folder, {
      recipe: 'videobert',
      overrides: ['engine.name=cpu', 'data.frameDiskGibibytes=0', small],
    });
    for (const file of [0, 1, 2, 3]) {
      await makeFilm(join(folder, `${file}.mp4`), { seconds: 2, size: '32x32', rate: 10 });
    }
  });

  const draw = async (): Promise<{ page: string; said: string[] }> => {
    const said: string[] = [];
    const file = await look({
      ...{ folder, clips: 4, cacheDir: scratch },
      say: (line) => said.push(line),
    });
    return { page: await readFile(file, 'utf8'), said };
  };

  it('a clip that does not decode is left out, and the others are drawn', async () => {
    const whole = await draw();
    assert.deepEqual(whole.said, []);
    const idsOf = (page: string): string[] =>
      [...page.matchAll(/fill="#889">([^<]*)</g)].map(([, id]) => id!);
    assert.deepEqual(idsOf(whole.page), ['0-0', '1-0', '2-0', '3-0']);
    await writeFile(join(folder, '1.mp4'), 'gone bad');
    const { page, said } = await draw();
    assert.deepEqual(idsOf(page), ['0-0', '2-0', '3-0']);
    assert.equal(said.length, 1);
    assert.match(said[0]!, /left out.*: 1-0 \(VIDEO_[A-Z_]+\)$/);
  });

  it('where none decodes, what is wrong with the first is the error', async () => {
    for (const file of [0, 2, 3]) await writeFile(join(folder, `${file}.mp4`), 'gone bad');
    await assert.rejects(draw(), { code: /^VIDEO_/, message: /0\.mp4/ });
  });
});

/** Of each film one caption, two alike. */
const CAPTIONED = TEST_SAMPLES.filter((_, i) => i % 3 === 2).map(({ parts, ...sample }) => ({
  ...sample,
  text: parts!.at(-1)!.text!,
}));

describe('what other systems make of held-out clips', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  before(async () => {
    await openCpuEngine();
    scratch = await temporaryFolder('look-others');
  });

  const pageOf = async (
    name: string,
    recipe: Parameters<typeof makeRunFolder>[1],
  ): Promise<string> => {
    const folder = join(scratch, name);
    await mkdir(folder);
    await makeRunFolder(folder, recipe);
    for (const file of [0, 1, 2, 3]) {
      await makeFilm(join(folder, `${file}.mp4`), { seconds: 2, size: '32x32', rate: 10 });
    }
    return readFile(await look({ folder, clips: 2, cacheDir: scratch }), 'utf8');
  };

  it('one that writes says something of each, beside what it is asked and what the data say', async () => {
    const page = await pageOf('writes', {
      ...{ recipe: 'minigpt4-video', stage: 'instruction' },
      overrides: [
        ...['engine.name=cpu', 'init=[]', 'train.frozen=[]', 'train.microbatchSize=2'],
        ...['data.frameDiskGibibytes=0', 'data.frameSize=16', 'model.maxAnswerTokens=2'],
        'model.language={width: 16, layers: 1, heads: 2, keyValueHeads: 1, mlpWidth: 24}',
        'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
        ...['data.windows=4', 'data.framesPerWindow=1', 'model.merge=2'],
      ],
    });
    assert.equal(page.match(/text-decoration="underline">[^<]+</g)?.length, 2);
    assert.equal(page.match(/<image /g)?.length, 8);
    const answers = TEST_SAMPLES.flatMap(({ parts }) => parts!.at(-1)!.text!);
    const truths = [...page.matchAll(/fill="#667">\(([^<]*)\)</g)].map(([, text]) => text!);
    assert.equal(truths.length, 2);
    for (const truth of truths) assert.ok(answers.includes(truth), truth);
    const asked = [...page.matchAll(/preserve"><tspan>([^<]*)<\/tspan><\/text>/g)]
      .map(([, text]) => plainAnswer(text!))
      .filter((text) => !text.startsWith('read before'));
    assert.equal(asked.length, 2);
    for (const question of asked)
      assert.ok(
        TEST_SAMPLES.some(({ parts }) => plainAnswer(parts![1]!.text!) === question),
        question,
      );
  });

  it('MERLOT guesses hidden words of all groups of a clip, each at its place', async () => {
    const page = await pageOf('merlot', {
      recipe: 'merlot',
      overrides: [
        ...['engine.name=cpu', 'data.frameDiskGibibytes=0', 'data.frameSize=16'],
        ...['data.windows=4', 'model.groupSize=2', 'model.patchSize=4', 'model.embedding=8'],
        'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
        'model.joint={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
      ],
    });
    const clips = page.split('font-size="11"').slice(1);
    assert.equal(clips.length, 2);
    for (const clip of clips) {
      // What was hidden stands in brackets, or is what was guessed.
      const words = [...clip.matchAll(/<tspan([^>]*)>([^<]+)<\/tspan>/g)]
        .map(([, style, text]) => ({ isHidden: /667|0a7d3c/.test(style!), style, text: text! }))
        .filter(({ style, text }) => !style!.includes('c02639') && text !== ' ')
        .flatMap(({ text, ...rest }) =>
          text.split(' ').map((word) => ({ ...rest, word: word.replace(/^\((.*)\)$/, '$1') })),
        );
      const said = words.map(({ word }) => word.replace(/^##/, '')).join('');
      assert.ok(said === 'apple'.repeat(4) || said === 'house'.repeat(4), said);
      // Of each of the two groups some.
      const half = words.length / 2;
      for (const group of [words.slice(0, half), words.slice(half)])
        assert.ok(group.some(({ isHidden }) => isHidden));
    }
  });

  it('one that compares finds of all held-out captions the one nearest, as its evaluation does', async () => {
    const page = await pageOf('compares', {
      recipe: 'clip',
      overrides: [
        ...[
          'engine.name=cpu',
          'data.frameDiskGibibytes=0',
          'data.frameSize=16',
          'model.embedding=8',
        ],
        'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
        'model.text={width: 16, layers: 1, heads: 2, mlpWidth: 24}',
        ...['data.windows=1', 'train.microbatchSize=2'],
      ],
      samples: CAPTIONED,
    });
    const folder = join(scratch, 'compares');
    const { file } = await evaluate({
      ...{ folder, cacheDir: scratch, question: '', limit: 10, what: { kind: 'retrieval' } },
      say: () => undefined,
    });
    const lines = (await readFile(file, 'utf8')).trim().split('\n');
    const found = lines.map((line) => {
      const { id, captions, scores } = JSON.parse(line) as Record<'id', string> &
        Record<'captions', string[]> &
        Record<'scores', number[]>;
      const isRed = scores[0]! > scores[1]!;
      const nearest = CAPTIONED[isRed ? 0 : 1]!.text;
      const alike = Math.max(...scores).toFixed(3);
      return { id, own: captions[0]!, nearest, alike };
    });
    assert.equal(found.length, CAPTIONED.length);
    const drawn = page.split('font-size="11" fill="#889">').slice(1);
    assert.equal(drawn.length, 2);
    for (const clip of drawn) {
      const id = clip.slice(0, clip.indexOf('<'));
      const { own, nearest, alike } = found.find((each) => each.id === id)!;
      assert.ok(clip.includes(`text-decoration="underline">${nearest}<`), clip);
      assert.equal(clip.includes(`(${own})`), nearest !== own);
      assert.match(clip, new RegExp(`>alike ${alike}[,<]`));
    }
    const { answers } = await sample({
      ...{ folder, cacheDir: scratch, file: join(folder, '0.mp4') },
      question: `${CAPTIONED[0]!.text} | ${CAPTIONED[1]!.text}`,
    });
    const { nearest, alike } = found.find(({ id }) => id === CAPTIONED[0]!.id)!;
    assert.equal(answers.length, 1);
    assert.ok(answers[0]!.text.startsWith(`${alike} ${nearest} | `), answers[0]!.text);
  });
});
