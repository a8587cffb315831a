import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdtemp, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  committedStep,
  readSummary,
  startVideoloom,
  videoloom,
  type Started,
  type Summary,
} from './command.ts';
import { makeTlsFolder, type TlsFolder } from './tls-folder.ts';
import { compiled } from '../../proto/compiled.mjs';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';

/** A run over TLS between real processes, and whoever tries to take part in it without the right to. */
const STEPS = 12;
const HOUR_MS = 3_600_000;

const work = await temporaryFolder('work');
let tls: TlsFolder;
let other: TlsFolder;
let plain: Summary;
const started: Started[] = [];

const recipe = (out: string, workers: number): string[] => [
  ...['videobert', '--preset', 'tiny', '--steps', String(STEPS), '--workers', String(workers)],
  ...['--out', out, 'checkpoint.everySteps=6', 'data.demoTrainClips=24', 'data.demoHeldOutClips=8'],
];

before(async () => {
  [tls, other] = await Promise.all([makeTlsFolder(3), makeTlsFolder(3)]);
  const { code, output } = await videoloom(['train', ...recipe('plain', 1)], { cwd: work });
  assert.equal(code, 0, output);
  plain = await readSummary(join(work, 'plain'));
});

after(() => {
  for (const each of started) each.killAll();
});

function start(args: readonly string[], env: NodeJS.ProcessEnv = {}): Started {
  const process = startVideoloom(args, { cwd: work, env });
  started.push(process);
  return process;
}

/** Runs a command that has to end soon, whatever it does. */
async function endOf(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<[number | null, string]> {
  const process = start(args, env);
  const limit = setTimeout(() => {
    process.killAll();
  }, 600_000);
  const { code, output } = await process.ended;
  clearTimeout(limit);
  return [code, output];
}

test('plain text off the loopback is refused when a process starts, and --insecure warns', async () => {
  const run = join(work, 'plain');
  const join_ = ['--run', run, '--id', 'worker-0', '--engine', 'cpu'];
  const commands = [
    ['coordinator', '--run', run, '--listen', '0.0.0.0:0'],
    ['worker', ...join_, '--coordinator', '192.0.2.1:7077'],
    ['worker', ...join_, '--coordinator', '127.0.0.1:7077', '--listen', '0.0.0.0'],
    ['status', '192.0.2.1:7077'],
    ['stop', '192.0.2.1:7077'],
  ];
  for (const [code, output] of await Promise.all(commands.map((command) => endOf(command)))) {
    assert.equal(code, 2, output);
    assert.match(output, /^PLAIN_TEXT_OFF_LOOPBACK: .*videoloom init --tls DIR/m);
  }
  const [code, output] = await endOf([
    ...[
      'coordinator',
      '--run',
      run,
      '--listen',
      '0.0.0.0:0',
      '--insecure',
      '--linger-seconds',
      '0',
    ],
  ]);
  assert.equal(code, 0, output);
  assert.match(output, /"code":"INSECURE".*whoever reaches this network can read the run, join it/);
});

test('workers take gradients where they reach the coordinator: on a network when that is on one', async (context) => {
  const own = Object.values(networkInterfaces())
    .flat()
    .find((each) => each?.family === 'IPv4' && !each.internal)?.address;
  if (own === undefined) {
    context.skip('this machine has no network');
    return;
  }
  const listen = ['--listen', `${own}:0`, '--insecure'];
  const { code, output } = await videoloom(['train', ...recipe('networked', 2), ...listen], {
    cwd: work,
  });
  assert.equal(code, 0, output);
  const run = join(work, 'networked');
  for (const name of ['worker-0', 'worker-1']) {
    const log = await readFile(join(run, 'logs', `${name}.jsonl`), 'utf8');
    const up = JSON.parse(/^.*"worker is up".*$/m.exec(log)![0]) as Record<string, string>;
    for (const address of [up['service']!, up['tensors']!])
      assert.ok(address.startsWith(`${own}:`), address);
  }
  assert.equal((await readSummary(run)).weightsSha256, plain.weightsSha256);
});

test('over TLS a run ends with the weights of the one in plain text, strangers or not', async () => {
  const run = join(work, 'secure');
  const prepared = await prepareRun('secure');
  const coordinator = start([
    ...[
      'coordinator',
      '--run',
      run,
      '--tls',
      tls.folder,
      '--log-file',
      join(run, 'coordinator.jsonl'),
    ],
  ]);
  const { address, metricsAddress } = await addressesOf(run, coordinator);
  const worker = (id: string, folder: string): string[] => [
    ...['worker', '--run', run, '--coordinator', address, '--id', id, ...prepared],
    ...(folder === '' ? [] : ['--tls', folder]),
  ];
  const first = start(worker('worker-0', tls.folder));

  // --- Strangers, while the run waits for its second worker.
  const past = { notBefore: new Date(0), notAfter: new Date(Date.now() - HOUR_MS) };
  const [wrongToken, expired, wrongName] = await Promise.all([1, 2, 3].map(() => copyOf(tls)));
  await wrongToken!.write('token', other.token);
  await tls.reissue({ role: 'worker', workerId: 'worker-2' }, past);
  for (const kind of ['pem', 'key'])
    await expired!.write(`workers/worker-2.${kind}`, await tls.read(`workers/worker-2.${kind}`));
  for (const kind of ['pem', 'key'])
    await wrongName!.write(`workers/worker-1.${kind}`, await tls.read(`workers/worker-0.${kind}`));
  const operatorAsWorker = await copyOf(tls);
  for (const kind of ['pem', 'key'])
    await operatorAsWorker.write(`workers/worker-1.${kind}`, await tls.read(`operator.${kind}`));
  const strangers: [string, string[], RegExp][] = [
    [
      'another authority',
      worker('worker-1', other.folder),
      /CONNECTION_REFUSED: .*self-signed certificate/,
    ],
    ['plain text', worker('worker-1', ''), /CONNECTION_REFUSED: .*ends connections in plain text/],
    [
      'a wrong token',
      worker('worker-1', wrongToken!.folder),
      /TOKEN_REFUSED: the join token is missing or/,
    ],
    ['expired', worker('worker-2', expired!.folder), /CERTIFICATE_EXPIRED: .*videoloom init --tls/],
    [
      'another worker',
      worker('worker-1', wrongName!.folder),
      /PERMISSION_DENIED: .*worker "worker-0": it may not speak for worker "worker-1"/,
    ],
    [
      'a wrong role',
      worker('worker-1', operatorAsWorker.folder),
      /PERMISSION_DENIED: .*an operator/,
    ],
    [
      'no certificate for the id',
      worker('worker-9', tls.folder),
      /TLS_FOLDER_INVALID: .*--worker worker-9/,
    ],
    ['no operator', ['status', address, '--tls', other.folder], /CONNECTION_REFUSED/],
  ];
  const ends = await Promise.all(strangers.map(([, command]) => endOf(command)));
  for (const [i, [name, , pattern]] of strangers.entries()) {
    const [code, output] = ends[i]!;
    assert.ok(code === 1 || code === 2, `${name} ends with ${code}: ${output}`);
    assert.match(output, pattern, name);
    assert.equal(output.match(/^[A-Z_]+: /gm)?.length, 1, `${name}: one error: ${output}`);
  }
  assert.equal(await committedStep(run), 0, 'the run still waits');

  // --- The run, and what is seen of it from outside.
  const second = start(worker('worker-1', tls.folder));
  const secrets = [tls.token, ...(await tls.keys())];
  const seen: string[] = [];
  for (const each of [coordinator, first, second]) {
    const pid = each.child.pid!;
    seen.push(
      await readFile(`/proc/${pid}/cmdline`, 'utf8'),
      await readFile(`/proc/${pid}/environ`, 'utf8'),
    );
  }
  for (const path of ['/metrics', '/metrics?token=1', '/', '/run.json', '/../token'])
    seen.push(await (await fetch(`http://${metricsAddress}${path}`)).text());
  const [code, status] = await endOf(['status', address, '--json', '--tls', tls.folder]);
  assert.equal(code, 0, status);
  seen.push(status);
  const outcomes = await Promise.all([first, second, coordinator].map(({ ended }) => ended));
  for (const { code: exit, output } of outcomes) assert.equal(exit, 0, output);
  assert.equal((await readSummary(run)).weightsSha256, plain.weightsSha256);
  assert.deepEqual((await readSummary(run)).figures, plain.figures);

  // --- Nothing of what was printed, logged or written has a secret in it.
  seen.push(...outcomes.map(({ output }) => output), ...ends.map(([, output]) => output));
  for (const name of await readdir(run, { recursive: true })) {
    const path = join(run, name);
    if ((await stat(path)).isFile()) seen.push(await readFile(path, 'latin1'));
  }
  for (const text of seen)
    for (const secret of secrets)
      assert.ok(!text.includes(secret), `a secret in ${text.slice(0, 400)}`);
  // What kept the strangers out is in the log, with the reason.
  const log = await readFile(join(run, 'coordinator.jsonl'), 'utf8');
  assert.match(log, /"code":"CONNECTION_REFUSED".*a connection to the coordinator was refused/);
});

/** Prepares a run folder and gives the flags of its workers. */
async function prepareRun(out: string): Promise<string[]> {
  const overrides = recipe(out, 2).filter((word) => /^[a-z]+\.[A-Za-z]+=/.test(word));
  const set = [`train.steps=${STEPS}`, 'cluster.workers=2', ...overrides];
  const main = compiled(new URL('../../worker/main.ts', import.meta.url));
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [
      ...[main, 'prepare', 'videobert'],
      ...['--preset', 'tiny', '--out', out, ...set.flatMap((override) => ['--set', override])],
    ],
    { cwd: work },
  );
  const { engine, pluginPath } = JSON.parse(stdout) as { engine: string; pluginPath: string };
  return ['--engine', engine, '--plugin', pluginPath];
}

async function addressesOf(
  run: string,
  coordinator: Started,
): Promise<{ address: string; metricsAddress: string }> {
  for (let polls = 0; polls < 6000; polls++) {
    const text = await readFile(join(run, 'coordinator.json'), 'utf8').catch(() => '');
    if (text !== '') return JSON.parse(text) as { address: string; metricsAddress: string };
    if (coordinator.child.exitCode !== null) break;
    await delay(50);
  }
  throw new Error(`no coordinator: ${coordinator.output()}`);
}

/** A folder of the same run in which a file can be bent. */
async function copyOf({ folder }: TlsFolder): Promise<{
  folder: string;
  write(name: string, text: string): Promise<void>;
}> {
  const copy = await mkdtemp(join(work, 'tls-'));
  await cp(folder, copy, { recursive: true });
  return { folder: copy, write: (name, text) => writeFile(join(copy, name), text) };
}
