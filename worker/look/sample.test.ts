import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../../video/test/films.ts';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { sample } from './sample.ts';
import { makeRunFolder } from '../test/run-folder.ts';

const LANGUAGE = 'model.language={width: 16, layers: 1, heads: 2, keyValueHeads: 1, mlpWidth: 24}';
const VISION = 'model.vision={width: 16, layers: 1, heads: 2, mlpWidth: 24}';
const TINY = [
  'engine.name=cpu',
  'init=[]',
  'data.frameDiskGibibytes=0',
  'train.frozen=[]',
  'data.frameSize=16',
  'model.maxAnswerTokens=1',
  LANGUAGE,
];
const ASKED = 'what colour is it ?';

describe('a run is asked about a file', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let film: string;
  before(async () => {
    await openCpuEngine();
    scratch = await temporaryFolder('sample');
    await mkdir(join(scratch, 'new'));
    film = join(scratch, 'new', 'film.mp4');
    await makeFilm(film, { seconds: 4, size: '64x48', rate: 20 });
    await writeFile(
      join(scratch, 'new', 'film.vtt'),
      'WEBVTT\n\n00:00.500 --> 00:01.000\napple\n\n00:02.500 --> 00:03.500\nhouse\n',
    );
  });

  /** Asks a fresh run of a recipe's stage, and reads the sheet. */
  let runs = 0;
  const ask = async (
    [recipe, stage]: readonly [string, string],
    question: string,
    ...overrides: readonly string[]
  ) => {
    const folder = join(scratch, `run-${runs++}`);
    await mkdir(folder);
    await makeRunFolder(folder, { recipe, stage, overrides: [...TINY, ...overrides] });
    const said: string[] = [];
    const { sheet } = await sample({
      ...{ folder, file: film, question, cacheDir: scratch },
      say: (line) => said.push(line),
    });
    const page = await readFile(sheet, 'utf8');
    const times = [...page.matchAll(/>(\d+\.\d\d) s</g)].map(([, time]) => Number(time));
    const images = [...page.matchAll(/href="([^"]+)"/g)].map(([, url]) => url!);
    return { said, page, times, images };
  };
  const MINIGPT = ['minigpt4-video', 'instruction'] as const;
  const FOUR = [VISION, 'data.windows=4', 'data.framesPerWindow=1', 'model.merge=2'];

  it('the sheet shows the frames and subtitles that the model is given, and no others', async () => {
    const all = await ask(MINIGPT, ASKED, ...FOUR);
    assert.deepEqual(all.times, [0.5, 1.5, 2.5, 3.5]);
    assert.match(all.page, />minigpt4-video, step 1: what it saw and said</);
    assert.match(all.page, />read before the answer: apple house what colour is it\?</);
    const middle = 'data.sampling={policy: random-clip, seconds: 1}';
    const part = await ask(MINIGPT, ASKED, ...FOUR, middle, 'model.subtitles=false');
    assert.equal(part.times.length, 4);
    assert.ok(part.times.every((time) => time > 1.5 && time < 2.5), part.times.join()); // prettier-ignore
    assert.doesNotMatch(part.page, /apple|house/);
    // What is framed in another way looks other.
    const cut = await ask(MINIGPT, ASKED, ...FOUR, 'data.fit=cover');
    assert.deepEqual(cut.times, all.times);
    assert.notDeepEqual(cut.images, all.images);
  });

  it('where one frame is given, one is shown; where none, none', async () => {
    const queries = 'model.qFormer={queries: 2, width: 16, layers: 2, heads: 2, mlpWidth: 24}';
    const generate = ['blip2', 'generate'] as const;
    const { times } = await ask(generate, ASKED, VISION, queries, 'data.windows=4');
    assert.equal(times.length, 1);
    const folder = join(scratch, `run-${runs - 1}`);
    const examples = [{ file: film, answer: 'red' }];
    await assert.rejects(
      sample({ folder, file: film, question: ASKED, cacheDir: scratch, examples }),
      { code: 'EXAMPLES_UNAVAILABLE' },
    );
    const blind = await ask(generate, ASKED, VISION, queries, 'model.blind=true');
    assert.equal(blind.images.length, 0);
  });

  it('examples are shown before what is asked, to systems that read them', async () => {
    const folder = join(scratch, 'few-shot');
    await mkdir(folder);
    const small = ['model.vision={width: 2, blocks: [1]}', 'train.frozen=[language]'];
    await makeRunFolder(folder, {
      ...{ recipe: 'frozen', stage: 'captioning', overrides: [...TINY, ...small] },
    });
    const other = join(scratch, 'other.mp4');
    await makeFilm(other, { seconds: 1, size: '64x48', rate: 20 });
    const examples = [
      { file: other, answer: 'a blue star' },
      { file: film, answer: 'a red circle' },
    ];
    const asked = { folder, file: film, question: ASKED, cacheDir: scratch };
    const { sheet } = await sample({ ...asked, examples });
    const page = (await readFile(sheet, 'utf8')).replace(/<\/?text[^>]*>\s*/g, ' ');
    assert.match(
      page,
      /before the answer: what colour is it\? a blue star what colour is it\? a red circle what colour is it\?/,
    );
    // They are drawn before it, too.
    assert.match(page, /example: a blue star .*example: a red circle .*\d s /s);
    const missing = [{ file: join(scratch, 'none.mp4'), answer: 'red' }];
    await assert.rejects(sample({ ...asked, examples: missing }), { code: 'VIDEO_NOT_FOUND' });
  });

  it('nothing is told of a new film that was said of another one', async () => {
    const { page, images } = await ask(['blip2', 'language'], ASKED);
    assert.equal(images.length, 0);
    assert.doesNotMatch(page, /read before the answer|red circle|left/);
  });

  it('a question that is cut is told and shown as far as it is given; so is the one by itself', async () => {
    const long = `${'what colour is it and '.repeat(12)}which way ?`;
    const { said, page } = await ask(MINIGPT, long, ...FOUR);
    assert.equal(said.length, 1);
    const [, count, given] = /^the question is cut to (\d+) word pieces: (.*)$/.exec(said[0]!)!;
    assert.ok(Number(count) > 5 && given!.length > 10 && long.startsWith(given!), said[0]);
    assert.doesNotMatch(page, /which way/);
    assert.ok(page.replace(/<\/?text[^>]*>\s*/g, ' ').includes('user: what colour is it'));
    const short = await ask(MINIGPT, ASKED, ...FOUR);
    assert.deepEqual(short.said, []);
    const own = await ask(MINIGPT, '', ...FOUR, 'model.describe=what happens ?');
    assert.deepEqual(own.said, ['asked: what happens ?']);
    assert.match(own.page, />user: what happens \?</);
  });

  it('a system that draws shows what it sees of the frame, and what it draws of the text', async () => {
    const draw = async (question: string) => {
      const folder = join(scratch, `run-${runs++}`);
      await mkdir(folder);
      const small = 'model.decoder={width: 8, layers: 1, heads: 2, mlpWidth: 8}';
      const overrides = [
        'engine.name=cpu',
        'data.frameDiskGibibytes=0',
        'data.frameSize=16',
        small,
      ];
      await makeRunFolder(folder, { recipe: 'cm3leon', overrides });
      const { answers, sheet } = await sample({ folder, file: film, question, cacheDir: scratch });
      const page = await readFile(sheet, 'utf8');
      const images = [...page.matchAll(/href="([^"]+)"/g)].map(([, url]) => url!);
      return { page, images, text: answers[0]!.text };
    };
    const asked = await draw('a blue star');
    assert.equal(asked.images.length, 3);
    assert.equal(new Set(asked.images).size, 3);
    assert.match(asked.page, />as the model sees it<.*>drawn: a blue star</s);
    const filled = await draw('a [MASK] star');
    assert.ok(filled.page.includes(`>drawn: a ${filled.text} star<`) || filled.text === '');
  });
});
