import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cp, readdir, readFile, rename, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { compiled } from '../../proto/compiled.mjs';
import { readRunPlan } from '../../proto/run-plan.ts';
import { positionOf, sampleAt } from '../../proto/sample-order.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { readIndex } from '../../video/index/sample-index.ts';
import { committedStep, reachStep, readSummary } from './command.ts';
import { startVideoloom, videoloom, type Started } from './command.ts';

/**
 * What did not decode in a committed step is a fact of the run: when a kill throws the run back to an earlier
 * checkpoint, the step gives the same bits again, however the files look by then.
 *
 * Every run here has a checkpoint at step 3 and is killed when step 5 is committed: then it waits for a film of step 6,
 * in whose place there is a pipe that nobody writes to.
 */
const [CHECKPOINT, CHANGING, LAST_BEFORE_KILL, STEPS] = [3, 5, 5, 7];
const WORKER_MAIN = compiled(new URL('../../worker/main.ts', import.meta.url));
const FIELDS = [
  ...['data.folder="films"', 'data.clipSeconds=10', 'data.cacheMebibytes=0'],
  // A slow machine must not give up the film that holds a run.
  ...['data.frameDiskGibibytes=0', 'data.decodeTimeoutSeconds=600'],
  // Nobody is to be found here: a worker that a busy machine starves must not be taken for lost, and its steps redone.
  'cluster.detectWithin=30',
  ...[`train.steps=${STEPS}`, 'train.microbatches=1', 'train.microbatchSize=2'],
  ...[`checkpoint.everySteps=${CHECKPOINT}`, 'cluster.workers=1'],
];
const work = await temporaryFolder('work');
/** A film of step 5, whose state changes, and one of step 6, at which a run can be held. */
let changing: string;
let holding: string;

before(async () => {
  const { code, output } = await videoloom(
    ['data', 'demo', '--out', 'films', '--train', '16', '--held-out', '2'],
    { cwd: work },
  );
  assert.equal(code, 0, output);
  const folder = join(work, 'films/train');
  // One caption and one sample a film.
  for (const name of await readdir(folder)) if (name.endsWith('.vtt')) await rm(join(folder, name));

  const set = FIELDS.flatMap((field) => ['--set', field]);
  const prepare = ['prepare', 'videobert', '--preset', 'tiny', '--out', 'prepared', ...set];
  execFileSync(process.execPath, [WORKER_MAIN, ...prepare], {
    cwd: work,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const plan = await readRunPlan(join(work, 'prepared'));
  const { root, files, train } = await readIndex(join(work, 'prepared/samples.jsonl'));
  const filmOf = (step: number): string => {
    const order = { seed: plan.seed, numSamples: plan.numTrainSamples };
    const { media } = train[sampleAt(order, positionOf(plan, step, 0, 0)).sample]!;
    return join(root, files[media[0]!.file]!.path);
  };
  assert.equal(train.length, 16, 'each film is one sample, and no step has one twice');
  [changing, holding] = [filmOf(CHANGING), filmOf(LAST_BEFORE_KILL + 1)];
});

const args = (run: string): string[] => [
  ...['train', 'videobert', '--preset', 'tiny', '--out', run, ...FIELDS],
];
const folderOf = (run: string): string => join(work, run);

/** A run that nobody has trained yet. */
async function freshRun(run: string): Promise<void> {
  await cp(folderOf('prepared'), folderOf(run), { recursive: true });
}

async function damage(film: string): Promise<void> {
  await cp(film, `${film}.whole`);
  await truncate(film, 2000);
}

async function mend(film: string): Promise<void> {
  await rename(`${film}.whole`, film);
}

/** Trains until step 5 is committed, then kills everything. */
async function trainAndKill(run: string): Promise<void> {
  await rename(holding, `${holding}.whole`);
  execFileSync('mkfifo', [holding]);
  const started: Started = startVideoloom(args(run), { cwd: work });
  try {
    await reachStep(folderOf(run), LAST_BEFORE_KILL, started);
  } finally {
    started.killAll();
    await started.ended;
    await rm(holding);
    await mend(holding);
  }
  assert.equal(await committedStep(folderOf(run)), LAST_BEFORE_KILL);
}

/** What the commits of a step say of its numbers and skips, in order of time. */
async function commitsOf(run: string, step: number): Promise<unknown[]> {
  const lines = (await readFile(join(folderOf(run), 'journal.jsonl'), 'utf8')).trim().split('\n');
  return lines.flatMap((line) => {
    const commit = JSON.parse(line) as Record<string, unknown>;
    if (commit['type'] !== 'commit' || commit['step'] !== step) return [];
    const { objectives, gradientNorm, skipped } = commit;
    return [{ objectives, gradientNorm, skipped }];
  });
}

test('a film that did not decode when its step was committed, and would now, stays out of that step', async () => {
  await Promise.all([freshRun('undisturbed'), freshRun('was-bad')]);
  await damage(changing);
  const undisturbed = await videoloom(args('undisturbed'), { cwd: work });
  assert.equal(undisturbed.code, 0, undisturbed.output);
  await trainAndKill('was-bad');
  await mend(changing);

  const { code, output } = await videoloom(args('was-bad'), { cwd: work });
  assert.equal(code, 0, output);
  const [first, again] = await commitsOf('was-bad', CHANGING);
  assert.match(JSON.stringify(first), /"reason":"VIDEO_/);
  assert.deepEqual(again, first);
  const summary = await readSummary(folderOf('was-bad'));
  assert.deepEqual(summary, await readSummary(folderOf('undisturbed')));
  assert.equal(summary.skippedSamples, 1);
  const lost = await videoloom(['quarantine', 'was-bad', '--out', 'lost.jsonl'], { cwd: work });
  assert.equal(lost.code, 0, lost.output);
  const [file, ...others] = (await readFile(join(work, 'lost.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.ok(changing.endsWith(String(file!['path'])));
  assert.deepEqual([file!['numSubstituted'], others], [1, []]);
});

test('a film that decoded when its step was committed, and does not now, is named; mended it trains on', async () => {
  await freshRun('was-good');
  await trainAndKill('was-good');
  await damage(changing);
  const refused = await videoloom(args('was-good'), { cwd: work });
  await mend(changing);
  assert.equal(refused.code, 1, refused.output);
  assert.match(refused.output, new RegExp(`SAMPLE_CHANGED: a clip of step ${CHANGING},`));
  assert.ok(refused.output.includes(changing));
  assert.equal((await commitsOf('was-good', CHANGING)).length, 1);

  const { code, output } = await videoloom(args('was-good'), { cwd: work });
  assert.equal(code, 0, output);
  const [first, again] = await commitsOf('was-good', CHANGING);
  assert.deepEqual(again, first);
  assert.equal((await readSummary(folderOf('was-good'))).skippedSamples, 0);
});

test('a held-out film that does not decode counts in no figure, and is named', async () => {
  const film = join(work, 'films/held-out/held-out-0000.mp4');
  await freshRun('held-out');
  await damage(film);
  const { code, output } = await videoloom(args('held-out'), { cwd: work });
  await mend(film);
  assert.equal(code, 0, output);
  const counts = async (run: string): Promise<number[]> =>
    (await readSummary(folderOf(run))).figures.map(({ count }) => count);
  const [with0, without0] = [await counts('undisturbed'), await counts('held-out')];
  const { heldOut, files } = await readIndex(folderOf('held-out/samples.jsonl'));
  const isLost = heldOut.map(({ media }) => film.endsWith(files[media[0]!.file]!.path));
  const numLost = isLost.filter(Boolean).length;
  assert.ok(numLost > 0 && numLost < heldOut.length);
  // Every clip is asked the same number of alignment questions.
  const last = with0.length - 1;
  assert.equal(without0[last]! * heldOut.length, with0[last]! * (heldOut.length - numLost));
  for (const [i, count] of without0.entries()) assert.ok(count < with0[i]!, String(without0));
  const lost = await videoloom(['quarantine', 'held-out'], { cwd: work });
  const lines = lost.output.match(
    /held-out-0000\.mp4.* {2}held out, counts in no figure {2}VIDEO_/g,
  );
  assert.equal(lines?.length, numLost, lost.output);
});
