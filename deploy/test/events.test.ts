import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { readJournal } from '../../coordinator/journal.ts';
import { journaled } from '../../coordinator/test/journaled-events.ts';
import {
  idsIn,
  natsServerProgram,
  poll,
  startNatsServer,
  storedEvents,
  withNats,
  type NatsServerOptions,
  type NatsServerProcess,
} from '../../coordinator/test/nats-server.ts';
import { testPlan } from '../../coordinator/test/scripted-worker.ts';
import type { CloudEvent } from '../../proto/run-events.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { initTls } from '../init-tls.ts';
import { reachStep, readSummary, startVideoloom, videoloom, type Started } from './command.ts';

/** Events of real runs, and the server that `deploy/nats.conf` describes. */
const STEPS = 60;
const NATS_CONF = fileURLToPath(new URL('../nats.conf', import.meta.url));

const found = await natsServerProgram();
const skip = 'skip' in found ? found.skip : false;
const program = 'path' in found ? found.path : '';

const work = await temporaryFolder('work');
const started: Started[] = [];

after(() => {
  for (const each of started) each.killAll();
});

async function nats(t: TestContext, options: NatsServerOptions = {}): Promise<NatsServerProcess> {
  const server = await startNatsServer(program, options);
  t.after(() => server.close());
  return server;
}

function start(args: readonly string[]): Started {
  const command = startVideoloom(args, { cwd: work });
  started.push(command);
  return command;
}

describe('a run whose events go to NATS', { skip }, () => {
  const recipe = (out: string, ...fields: string[]): string[] => [
    ...['train', 'videobert', '--preset', 'tiny', '--steps', String(STEPS), '--workers', '1'],
    // Nobody is to be found here: other tests starve a process for a second or two.
    ...['--out', out, 'checkpoint.everySteps=20', 'cluster.detectWithin=30'],
    ...['data.demoTrainClips=24', 'data.demoHeldOutClips=8', ...fields],
  ];
  let weights: string;

  /** The weights of the run without events, and each step once. */
  async function checkUndisturbed(run: string): Promise<void> {
    const summary = await readSummary(run);
    assert.equal(summary.weightsSha256, weights);
    const steps: number[] = [];
    readJournal(join(run, 'journal.jsonl'), (record) => {
      if (record.type === 'commit') steps.push(record.step);
      assert.notEqual(record.type, 'worker-lost');
    });
    assert.deepEqual(
      steps,
      Array.from({ length: STEPS }, (_, i) => i + 1),
    );
  }

  before(async () => {
    const { code, output } = await videoloom(recipe('plain'), { cwd: work });
    assert.equal(code, 0, output);
    weights = (await readSummary(join(work, 'plain'))).weightsSha256;
  });

  it('ends with the same weights, and its events are its journal, in order and once each', async (t) => {
    const server = await nats(t, { store: join(work, 'js-told') });
    const run = join(work, 'told');
    const { code, output } = await videoloom(recipe('told', `cluster.events=${server.url}`), {
      cwd: work,
    });
    assert.equal(code, 0, output);
    await checkUndisturbed(run);
    assert.deepEqual(await idsIn(server.url), await journaled(run));

    const shown = await videoloom(['events', 'told'], { cwd: work });
    assert.equal(shown.code, 0, shown.output);
    const lines = shown.output.trim().split('\n');
    assert.equal(lines.length, (await journaled(run)).length);
    assert.match(lines[0]!, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}run\.started {2}totalSteps 60 {2}/);
    assert.match(
      lines.at(-1)!,
      new RegExp(`  run\\.finished {2}step 60 {2}weightsSha256 ${weights}`),
    );
    const json = await videoloom(['events', 'told', '--json', '--server', server.url], {
      cwd: work,
    });
    const ids = json.output
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as CloudEvent).id);
    assert.deepEqual(ids, await journaled(run));
  });

  it('loses no step when the server is killed and stopped, and tells the rest when it is started again', async (t) => {
    const store = join(work, 'js-troubled');
    const first = await nats(t, { store });
    const { port, url } = first;
    const run = join(work, 'troubled');
    const training = start(recipe('troubled', `cluster.events=${url}`));
    await reachStep(run, 5, training);
    await first.close();
    await reachStep(run, 15, training);
    const second = await nats(t, { store, port });
    await reachStep(run, 25, training);
    second.kill('SIGSTOP');
    const { code, output } = await training.ended;
    assert.equal(code, 0, output);
    await checkUndisturbed(run);
    second.kill('SIGCONT');
    const log = await readFile(join(run, 'logs', 'coordinator.jsonl'), 'utf8');
    assert.match(log, /"code":"EVENTS_NOT_DELIVERED","events":\d+,/);

    // --- Where events go may change when a run goes on; whoever does not answer is passed over.
    const servers = `cluster.events=[nats://127.0.0.1:1, ${url}]`;
    const resumed = await videoloom(['resume', 'troubled', servers], { cwd: work });
    assert.equal(resumed.code, 0, resumed.output);
    const again = start(['coordinator', '--run', 'troubled']);
    assert.equal((await again.ended).code, 0, again.output());
    assert.deepEqual(await idsIn(url), await journaled(run));
  });

  it('is refused an address with a password, which nothing repeats', async () => {
    const wrong = 'cluster.events=nats://me:pa55word@127.0.0.1:4222';
    const { code, output } = await videoloom(recipe('refused', wrong), { cwd: work });
    assert.equal(code, 2, output);
    assert.match(output, /^EVENTS_CREDENTIALS_IN_ADDRESS: cluster\.events has /m);
    assert.doesNotMatch(output, /pa55word/);
  });
});

describe('videoloom events', { skip }, () => {
  it('waits for the first run of a server, and ends with a run that has ended', async (t) => {
    const server = await nats(t, { store: join(work, 'js-first') });
    const run = join(work, 'first');
    await mkdir(run);
    const plan = testPlan({ events: [server.url], runId: 'first' });
    await writeFile(join(run, 'run.json'), JSON.stringify(plan));
    const early = start(['events', 'first', '--new']);
    await poll('the events to be waited for', () => {
      assert.equal(early.child.exitCode, null, early.output());
      return Promise.resolve(early.output().includes('keeps no events yet') ? true : undefined);
    });
    const coordinator = start(['coordinator', '--run', 'first']);
    await poll('the first event', async () =>
      (await storedEvents(server.url).catch(() => [])).length > 0 ? true : undefined,
    );
    coordinator.child.kill('SIGTERM');
    await coordinator.ended;
    const seen = await early.ended;
    assert.equal(seen.code, 0, seen.output);
    assert.match(seen.output, /run\.started.*run\.stop-requested.*run\.stopped/s);

    const after = await videoloom(['events', 'first', '--new'], { cwd: work });
    assert.deepEqual([after.code, after.output], [0, 'first has ended: nothing new comes\n']);
    // It has ended on a server that keeps nothing, too.
    for (const store of [undefined, join(work, 'js-empty')]) {
      const { url } = await nats(t, { store });
      const args = ['events', 'first', '--server', url];
      const { code, output } = await videoloom(args, { cwd: work });
      assert.deepEqual([code, output], [0, 'first has ended: nothing is kept of it\n']);
    }
  });
});

describe('the last events of a run that has ended', { skip }, () => {
  it('are waited for, and not for ever', async (t) => {
    const store = join(work, 'js-late');
    const first = await nats(t, { store });
    await mkdir(join(work, 'late'));
    const plan = testPlan({ events: [first.url], runId: 'late' });
    await writeFile(join(work, 'late', 'run.json'), JSON.stringify(plan));
    const coordinator = start(['coordinator', '--run', 'late']);
    await poll('the first event', async () =>
      (await storedEvents(first.url).catch(() => [])).length > 0 ? true : undefined,
    );
    await first.close();
    coordinator.child.kill('SIGTERM');
    await coordinator.ended;

    // --- The journal has the end, the server has not, and nobody tells it.
    const second = await nats(t, { store, port: first.port });
    const alone = await videoloom(['events', 'late'], { cwd: work });
    assert.equal(alone.code, 0, alone.output);
    assert.match(alone.output, /run\.started.*\nlate has ended, and its last events have not come/);
    assert.doesNotMatch(alone.output, /run\.stopped/);

    // --- Somebody does while they are waited for.
    const reader = start(['events', 'late', '--new']);
    await delay(1000);
    const again = start(['coordinator', '--run', 'late']);
    await poll('the rest', async () =>
      (await storedEvents(second.url)).length > 3 ? true : undefined,
    );
    again.child.kill('SIGTERM');
    await again.ended;
    const { code, output } = await reader.ended;
    assert.equal(code, 0, output);
    assert.match(output, /run\.stop-requested.*run\.stopped/s);
    assert.doesNotMatch(output, /have not come/);
  });
});

describe('the server of deploy/nats.conf', { skip }, () => {
  const hosts = ['127.0.0.1', 'localhost'];
  const pem = (name: string): Promise<string> => readFile(join(work, name), 'utf8');
  /** What a NATS client needs to be one of the processes of a folder. */
  const as = async (folder: string, name: string): Promise<{ tls: Record<string, string> }> => ({
    tls: {
      ca: await pem(`${folder}/ca.pem`),
      cert: await pem(`${folder}/${name}.pem`),
      key: await pem(`${folder}/${name}.key`),
    },
  });
  const secureServer = (t: TestContext, cwd: string): Promise<NatsServerProcess> =>
    nats(t, { cwd, args: ['--config', NATS_CONF] });

  /** A run that nobody trains, with a coordinator that is stopped as soon as `isDone`. */
  async function coordinate(
    name: string,
    { url, tls }: { url: string; tls: string },
    isDone: (log: string) => Promise<boolean>,
  ): Promise<string> {
    const run = join(work, name);
    await mkdir(run);
    await writeFile(
      join(run, 'run.json'),
      JSON.stringify(testPlan({ events: [url], runId: name })),
    );
    const coordinator = start(['coordinator', '--run', name, '--tls', tls]);
    await poll(`the coordinator of ${name}`, async () => {
      assert.equal(coordinator.child.exitCode, null, coordinator.output());
      return (await isDone(coordinator.output())) ? true : undefined;
    });
    coordinator.child.kill('SIGTERM');
    const { output } = await coordinator.ended;
    return output;
  }

  before(async () => {
    const options = { workers: '1', days: '2', say: () => undefined };
    await initTls({ ...options, tls: join(work, 'tls'), nats: hosts });
    await initTls({ ...options, tls: join(work, 'other/tls'), nats: hosts });
    await initTls({ ...options, tls: join(work, 'far/tls'), nats: ['events.example'] });
  });

  it('lets coordinators publish, operators read, and nobody else in', async (t) => {
    const server = await secureServer(t, work);
    const url = `tls://127.0.0.1:${server.port}`;
    const coordinator = await as('tls', 'coordinator');
    const operator = await as('tls', 'operator');
    await coordinate('secure', { url, tls: 'tls' }, async () => {
      const events = await storedEvents(server.url, coordinator).catch(() => []);
      return events.length > 0;
    });
    const ids = (await storedEvents(server.url, coordinator)).map(({ msgId }) => msgId);
    assert.deepEqual(ids, await journaled(join(work, 'secure')));

    const read = await videoloom(['events', 'secure', '--tls', 'tls', '--json'], { cwd: work });
    assert.equal(read.code, 0, read.output);
    const types = read.output
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as CloudEvent).type);
    assert.deepEqual(
      types,
      ['started', 'stop-requested', 'stopped'].map((name) => `videoloom.run.${name}`),
    );

    await withNats(server.url, operator, async (connection) => {
      for (const subject of ['videoloom.secure.run.failed', '$JS.API.STREAM.DELETE.VIDEOLOOM'])
        await assert.rejects(
          connection.request(subject, '{}', { timeout: 20_000 }),
          /[Pp]ermissions? [Vv]iolation/,
        );
    });
    assert.equal((await storedEvents(server.url, coordinator)).length, ids.length);

    const strangers = [
      await as('tls', 'workers/worker-0'),
      await as('other/tls', 'coordinator'),
      { tls: { ca: await pem('tls/ca.pem') } },
      {},
    ];
    for (const stranger of strangers)
      await assert.rejects(
        withNats(server.url, { ...stranger, reconnect: false }, () => Promise.resolve()),
      );
  });

  it('is not told anything where it is not the one that is meant, and the run goes on', async (t) => {
    const cases: [name: string, serverFolder: string, tls: string, why: RegExp][] = [
      [
        'other-authority',
        'other',
        'tls',
        /EVENTS_NOT_CONNECTED.*verify the first certificate.*--nats 127\.0\.0\.1/,
      ],
      [
        'other-name',
        'far',
        'far/tls',
        /EVENTS_NOT_CONNECTED.*127\.0\.0\.1 is not in the cert's list/,
      ],
    ];
    for (const [name, folder, tls, why] of cases) {
      const server = await secureServer(t, join(work, folder));
      const url = `nats://127.0.0.1:${server.port}`;
      await coordinate(name, { url, tls }, (log) => Promise.resolve(why.test(log)));
      const kept = await readdir(join(work, folder, 'events'), { recursive: true });
      assert.ok(!kept.some((path) => path.includes('VIDEOLOOM')), kept.join(' '));
    }
    // A server without TLS is told nothing either.
    const plain = await nats(t, { store: join(work, 'js-plain') });
    const isRefused = (log: string): Promise<boolean> =>
      Promise.resolve(/EVENTS_NOT_CONNECTED.*does not support 'tls'/.test(log));
    await coordinate('no-tls', { url: plain.url, tls: 'tls' }, isRefused);
    assert.deepEqual(await storedEvents(plain.url), []);
  });
});
