import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFile, mkdir, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { newTrainee, trainToTheEnd } from '../../coordinator/test/scripted-training.ts';
import { testPlan } from '../../coordinator/test/scripted-worker.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { loadCheckpoint } from '../../worker/checkpoint/load.ts';
import {
  committedStep,
  reachStep,
  readSummary,
  startVideoloom,
  videoloom,
  type Started,
} from './command.ts';

/** What users do wrong and what machines do to them: each gives one clear error or a counted skip. */
const work = await temporaryFolder('work');
const SMALL = ['data.demoTrainClips=12', 'data.demoHeldOutClips=4'];
const tiny = (...args: string[]): string[] => [
  'train',
  'videobert',
  '--preset',
  'tiny',
  '--workers',
  '1',
  ...args,
];

before(async () => {
  const made = await videoloom(
    ['data', 'demo', '--out', 'films', '--train', '8', '--held-out', '2'],
    { cwd: work },
  );
  assert.equal(made.code, 0, made.output);
});

/** A refusal: one line `CODE: message`, no stack, and the exit code of wrong usage or of a failure. */
async function refused(
  args: readonly string[],
  code: number,
  pattern: RegExp,
  env: NodeJS.ProcessEnv = {},
): Promise<void> {
  const outcome = await videoloom(args, { cwd: work, env });
  assert.match(outcome.output, pattern);
  assert.doesNotMatch(outcome.output, /^\s+at .*\.ts:\d+/m, 'a stack trace is for bugs');
  assert.equal(outcome.code, code, outcome.output);
}

test('a recipe, preset or field that does not exist is named with what there is', async () => {
  await refused(
    ['train', 'videobret'],
    2,
    /RECIPE_NOT_FOUND: .*videobret \(did you mean videobert\?\).*\(blip2, clip, .*videobert, .*\)/,
  );
  await refused(tiny('--preset', 'tny'), 2, /CONFIG_INVALID: .*no preset tny.*tiny/);
  await refused(
    tiny('train.step=3'),
    2,
    /CONFIG_INVALID: .*train\.step; did you mean train\.steps\?/,
  );
  await refused(tiny('train.microbatches=3'), 2, /train\.microbatches is 3: .*power of two/);
});

test('a data folder that is missing or has no videos is named', async () => {
  await mkdir(join(work, 'empty'));
  await refused(tiny('--data', 'nowhere', '--out', 'r1'), 2, /DATA_NOT_FOUND: .*nowhere/);
  await refused(
    tiny('--data', 'empty', '--out', 'r2'),
    1,
    /DATA_EMPTY: .*empty.*\.tar.*videos or pictures/,
  );
  const [film] = (await readdir(join(work, 'films/train'))).filter((name) => name.endsWith('.mp4'));
  await refused(
    tiny('--data', `films/train/${film!}`, '--out', 'r3'),
    2,
    /DATA_NOT_A_FOLDER: .*\.mp4 is a video.*takes a folder/,
  );
  await refused(['sample', 'films', 'nothere.mp4'], 2, /VIDEO_NOT_FOUND: .*nothere\.mp4/);
});

test('an option that a verb has not is named with the nearest one, and its help lists those that it has', async () => {
  for (const [verb, option, near] of [
    ['look', '--ot', '--out'],
    ['sample', '--uot', '--out'],
    ['probe', '--jsn', '--json'],
    ['export', '--stp', '--step'],
    ['worker', '--cordinator', '--coordinator'],
    ['engine', '--gpus', '--gpu'],
  ] as const) {
    await refused(
      [verb, option],
      2,
      new RegExp(`USAGE: there is no option ${option}; did you mean ${near}\\?`),
    );
    const { output, code } = await videoloom([verb, '--help'], { cwd: work });
    assert.match(output, new RegExp(`${near}\\b`));
    assert.equal(code, 0, output);
  }
  const { output } = await videoloom(['coordinator', '--help'], { cwd: work });
  assert.match(output, /--take-over.*Examples:/s);
});

test('a place that cannot be written is named before any work is done for it', async () => {
  await writeFile(join(work, 'in-the-way'), '');
  await refused(tiny('--out', 'in-the-way', ...SMALL), 2, /OUT_NOT_WRITABLE: .*in-the-way.*file/);
  await refused(
    ['data', 'index', 'films', '--out', 'nodir/x.jsonl'],
    2,
    /OUT_NOT_WRITABLE: .*nodir\/x\.jsonl: there is no folder nodir/,
  );
  await refused(
    ['look', 'films', '--out', 'nodir/x.svg'],
    2,
    /OUT_NOT_WRITABLE: .*nodir\/x\.svg: there is no folder nodir/,
  );
});

test('a run is not prepared among certificates, which no process would look for there', async () => {
  for (const [recipe, stage] of [
    ['videobert', ''],
    ['video-llava', 'alignment'],
  ] as const) {
    const made = await videoloom(['init', '--tls', recipe, '--workers', '1'], { cwd: work });
    assert.equal(made.code, 0, made.output);
    await refused(
      ['train', recipe, '--preset', 'tiny', '--steps', '1', '--out', recipe, ...SMALL],
      2,
      /SECRETS_IN_RUN_FOLDER: .*holds ca\.key of .*--tls/,
    );
    await assert.rejects(readdir(join(work, recipe, stage, 'logs')), { code: 'ENOENT' });
  }
});

test('films without words are trained on with a warning', async () => {
  const folder = join(work, 'wordless');
  await mkdir(folder);
  for (const name of await readdir(join(work, 'films/train')))
    if (name.endsWith('.mp4')) await copyFile(join(work, 'films/train', name), join(folder, name));
  const args = tiny('--data', 'wordless', '--out', 'wordless-run', '--steps', '2');
  const { output } = await videoloom(args, { cwd: work });
  assert.match(output, /warning: (\d+) of \1 clips have no words.*\.vtt \.srt \.txt \.json/);
});

test('a plan that was cut off is named with the way out', async () => {
  const run = join(work, 'cut-off');
  await mkdir(run);
  await copyFile(
    join(import.meta.dirname, '../../worker/recipes/videobert.yaml'),
    join(run, 'config.resolved.yaml'),
  );
  await writeFile(join(run, 'run.json'), '{"runId": "cut-o');
  await refused(['resume', 'cut-off'], 2, /RUN_PLAN_INVALID: .*run\.json is not JSON: .*remove it/);
});

test('damaged files beside good ones are named, cost nothing else, and the run trains', async () => {
  const folder = join(work, 'damaged');
  await mkdir(folder);
  const films = (await readdir(join(work, 'films/train'))).filter((name) =>
    /\.(mp4|txt)$/.test(name),
  );
  for (const name of films) await copyFile(join(work, 'films/train', name), join(folder, name));
  const videos = films.filter((name) => name.endsWith('.mp4')).sort();
  await writeFile(join(folder, 'letter.mp4'), 'Dear reader, this is no film.\n');
  await writeFile(join(folder, 'nothing.mp4'), '');
  await copyFile(join(folder, videos[0]!), join(folder, 'cut.mp4'));
  await truncate(join(folder, 'cut.mp4'), 3000);
  // A film whose caption has no words is shown as video alone.
  await writeFile(join(folder, videos[1]!.replace('.mp4', '.txt')), '');

  const outcome = await videoloom(
    tiny('--data', 'damaged', '--out', 'damaged-run', '--steps', '4'),
    { cwd: work },
  );
  assert.equal(outcome.code, 0, outcome.output);
  for (const name of ['letter.mp4', 'nothing.mp4', 'cut.mp4']) {
    assert.match(outcome.output, new RegExp(`skipped ${name}: VIDEO_[A-Z_]+: .*${name}`));
  }
});

test('a file that goes bad after indexing costs its clip alone: counted, named, replaced', async () => {
  const args = tiny(
    '--data',
    'films',
    '--out',
    'went-bad',
    '--steps',
    '6',
    'checkpoint.everySteps=100',
  );
  const prepared = await videoloom([...args, 'train.steps=6'], { cwd: work });
  assert.equal(prepared.code, 0, prepared.output);

  const broken = join(work, 'broken-films');
  execFileSync('cp', ['-r', join(work, 'films'), broken]);
  const [first] = (await readdir(join(broken, 'train')))
    .filter((name) => name.endsWith('.mp4'))
    .sort();
  const started = startVideoloom(
    tiny(
      ...['--data', 'broken-films', '--out', 'goes-bad', '--steps', '6'],
      // What was decoded for the vocabulary is not to be found again.
      ...['data.cacheMebibytes=0', 'data.frameDiskGibibytes=0'],
    ),
    { cwd: work },
  );
  // The index is written before the vocabulary is fitted and the training begins.
  for (;;) {
    const there = await readdir(join(work, 'goes-bad')).catch((): string[] => []);
    if (there.includes('tokenizer.json')) break;
    if (started.child.exitCode !== null) assert.fail(started.output());
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await truncate(join(broken, 'train', first!), 2000);
  const outcome = await started.ended;
  assert.equal(outcome.code, 0, outcome.output);
  const { skippedSamples } = await readSummary(join(work, 'goes-bad'));
  assert.ok(skippedSamples >= 1, `${skippedSamples} skipped`);
  const journal = await readFile(join(work, 'goes-bad/journal.jsonl'), 'utf8');
  assert.match(journal, new RegExp(`VIDEO_[A-Z_]+.*${first!}`));
});

test('a plugin that is no plugin is refused with its path', async () => {
  const file = join(work, 'plugin.so');
  await writeFile(file, 'not a shared library');
  await refused(tiny('--out', 'r3', ...SMALL), 1, /PJRT_PLUGIN_INVALID: .*plugin\.so/, {
    PJRT_PLUGIN_PATH: file,
  });
  const missing = join(work, 'missing.so');
  await refused(tiny('--out', 'r4', ...SMALL), 1, /PLUGIN_NOT_FOUND: .*missing\.so/, {
    PJRT_PLUGIN_PATH: missing,
  });
});

test('a port in use is named with the way out', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  try {
    const args = ['--out', 'r5', '--listen', `127.0.0.1:${port}`, ...SMALL];
    await refused(tiny(...args), 1, new RegExp(`PORT_IN_USE: .*${port}.*[Cc]hoose another`));
  } finally {
    server.close();
  }
});

test('a second coordinator on the same run folder is refused, and the first goes on until it is told to stop', async () => {
  // Far more steps than the second one takes to start: a finished run has no owner.
  const args = tiny('--out', 'locked', '--steps', '1000000', ...SMALL);
  const run = join(work, 'locked');
  const first = startVideoloom(args, { cwd: work });
  try {
    await reachStep(run, 1, first);
    const second = await videoloom(['coordinator', '--run', 'locked'], { cwd: work });
    assert.equal(second.code, 1, second.output);
    assert.match(
      second.output,
      /RUN_LOCKED: .*locked.*videoloom coordinator --run locked --take-over/,
    );
    // Who would change what its processes read when they are started again.
    const before = await texts(run, 'run.json', 'config.resolved.yaml');
    const resumed = await videoloom(['resume', 'locked', 'cluster.detectWithin=5'], { cwd: work });
    assert.equal(resumed.code, 1, resumed.output);
    assert.match(resumed.output, /RUN_LOCKED: .*locked.*--take-over/);
    assert.deepEqual(await texts(run, 'run.json', 'config.resolved.yaml'), before);
    process.kill(await pidOfWorker(run), 'SIGKILL');
    await reachStep(run, (await committedStep(run)) + 2, first);
    const stopped = await videoloom(['stop', 'locked'], { cwd: work });
    assert.equal(stopped.code, 0, stopped.output);
    assert.match(
      stopped.output,
      /stopped at step (\d+) of 1000000 \(newest checkpoint \1\)\s+go on with: videoloom resume locked/,
    );
    const { code, output } = await first.ended;
    assert.equal(code, 75, output);
  } finally {
    first.killAll();
  }
  const again = await videoloom(['stop', 'locked'], { cwd: work });
  assert.equal(again.code, 0, again.output);
  assert.match(again.output, /stopped at step \d+ of 1000000/);
  // Its coordinator is gone: what it left tells how it ended.
  const { code, output } = await videoloom(['status', 'locked'], { cwd: work });
  assert.equal(code, 0, output);
  const [, step, kept] = /stopped at step (\d+) of 1000000 \(newest checkpoint (\d+)\)/.exec(
    output,
  )!;
  assert.equal(kept, step);
  assert.match(output, /videoloom resume locked/);
});

function texts(folder: string, ...names: string[]): Promise<string[]> {
  return Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')));
}

/** The process of the run's only worker, which tells its pid in each line of its log. */
async function pidOfWorker(run: string): Promise<number> {
  const [log] = await texts(run, 'logs/worker-0.jsonl');
  return (JSON.parse(log!.trimEnd().split('\n').at(-1)!) as { pid: number }).pid;
}

/** A coordinator of a run that nobody has to train, once it listens. */
async function coordinate(
  name: string,
  ...flags: string[]
): Promise<Started & { address: string; kill(): Promise<void> }> {
  const run = join(work, name);
  await mkdir(run, { recursive: true });
  await writeFile(join(run, 'run.json'), JSON.stringify(testPlan({ runId: name })));
  const started = startVideoloom(['coordinator', '--run', name, ...flags], { cwd: work });
  for (;;) {
    const { address } = /"address":"(?<address>[^"]+)"/.exec(started.output())?.groups ?? {};
    if (address !== undefined) {
      const kill = async (): Promise<void> => {
        started.killAll();
        await started.ended;
      };
      return { ...started, address, kill };
    }
    assert.equal(started.child.exitCode, null, started.output());
    await delay(20);
  }
}

test('status shows no other run that has the address of this one by now', async () => {
  const first = await coordinate('first');
  first.child.kill('SIGTERM');
  await first.ended;
  const second = await coordinate('second', '--listen', first.address);
  try {
    const status = (...args: string[]) => videoloom(['status', ...args], { cwd: work });
    assert.match((await status(first.address)).output, /^second: waiting/);
    assert.match((await status('second')).output, /^second: waiting/);
    assert.match((await status('first')).output, /^first: stopped at step 0 of 6 /);
    // Of another machine, whose processes nobody sees here.
    const elsewhere = { address: first.address, pid: 1, host: 'elsewhere' };
    await writeFile(join(work, 'first/coordinator.json'), JSON.stringify(elsewhere));
    assert.match((await status('first')).output, /^first: stopped at step 0 of 6 /);
  } finally {
    await second.kill();
  }
});

test('status --watch outlives a coordinator that is started again, and says so when none is', async () => {
  const watch = () => startVideoloom(['status', 'watched', '--watch'], { cwd: work });
  const sees = async (watching: Started, times: number): Promise<void> => {
    while (watching.output().split('waiting for workers').length <= times) {
      assert.equal(watching.child.exitCode, null, watching.output());
      await delay(20);
    }
  };
  const first = await coordinate('watched');
  const watching = watch();
  await sees(watching, 1);
  await first.kill();
  // On another port: it is looked for where the folder says.
  const second = await coordinate('watched');
  assert.notEqual(second.address, first.address);
  await delay(1000);
  second.child.kill('SIGTERM');
  await second.ended;
  const seen = await watching.ended;
  assert.equal(seen.code, 0, seen.output);
  assert.match(seen.output, /^watched: stopped/m);
  assert.doesNotMatch(seen.output, /does not answer/);

  const third = await coordinate('watched');
  const inVain = watch();
  await sees(inVain, 1);
  await third.kill();
  const { code, output } = await inVain.ended;
  assert.equal(code, 1, output);
  assert.match(output, /COORDINATOR_UNREACHABLE: .*watched answers.*videoloom resume watched/);
});

test('a finished run that is computed again, its weights being damaged, is not shown as finished', async () => {
  const first = await coordinate('run-a');
  const run = join(work, 'run-a');
  const plan = testPlan({ runId: 'run-a' });
  const { signal } = new AbortController();
  const options = { peers: [], stepMs: 0, signal };
  await trainToTheEnd(first.address, run, plan, newTrainee('a'), options);
  await first.ended;
  const status = async () => (await videoloom(['status', 'run-a'], { cwd: work })).output;
  assert.match(await status(), /^run-a: finished, step 6\n/);
  const checkpoint = join(run, 'checkpoints/step-00000006');
  await truncate(join(checkpoint, 'model-0'), 1);
  const second = await coordinate('run-a');
  try {
    assert.match(await status(), /^run-a: waiting, /);
  } finally {
    await second.kill();
  }
  assert.match(
    await status(),
    /^run-a: its coordinator does not answer .* \(newest checkpoint 3\)/,
  );
});

test('nobody at an address is one error of status, and a worker soon says whom it waits for', async () => {
  await refused(['status', '127.0.0.1:1'], 1, /COORDINATOR_UNREACHABLE: .*127\.0\.0\.1:1/);
  const args = ['--run', 'locked', '--coordinator', '127.0.0.1:1', '--id', 'a'];
  const waiting = startVideoloom(['worker', ...args, '--engine', 'cpu'], { cwd: work });
  try {
    for (let polls = 0; polls < 1200 && !waiting.output().includes('trying for'); polls++)
      await new Promise((resolve) => setTimeout(resolve, 100));
    assert.match(waiting.output(), /no coordinator at 127\.0\.0\.1:1 yet; trying for 1\d\d s more/);
  } finally {
    waiting.killAll();
  }
});

test('a full disk costs checkpoints and no half one is left; a run that could not keep its result says so and is resumed', async (context) => {
  // Files over 256 KiB fail as on a full disk; logs and journal stay below it, the optimizer state does not.
  try {
    execFileSync('prlimit', ['--version'], { stdio: 'ignore' });
  } catch {
    context.skip('there is no prlimit');
    return;
  }
  const args = tiny(
    '--out',
    'full',
    '--steps',
    '12',
    'checkpoint.everySteps=4',
    'model.width=64',
    ...SMALL,
  );
  const prepared = startVideoloom(args, { cwd: work });
  await reachStep(join(work, 'full'), 1, prepared);
  prepared.killAll();
  await prepared.ended;
  const outcome = await videoloom(args, { cwd: work, wrap: ['prlimit', '--fsize=262144'] });
  assert.equal(outcome.code, 1, outcome.output);
  assert.match(
    outcome.output,
    /RESULT_NOT_KEPT.*trained to step 12.*start the same command again/s,
  );
  const checkpoints = join(work, 'full/checkpoints');
  for (const name of await readdir(checkpoints)) {
    const files = await readdir(join(checkpoints, name));
    assert.ok(!files.some((file) => file.includes('tmp')), files.join());
    if (files.includes('manifest.json')) await loadCheckpoint(join(checkpoints, name));
  }
  const journal = await readFile(join(work, 'full/journal.jsonl'), 'utf8');
  assert.match(journal, /could not be written|CHECKPOINT_/);
  const resumed = await videoloom(args, { cwd: work });
  assert.equal(resumed.code, 0, resumed.output);
  await loadCheckpoint(join(checkpoints, 'step-00000012'));
});
