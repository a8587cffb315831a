import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, cp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { jetstreamManager, DiscardPolicy, type StreamConfig } from '@nats-io/jetstream';

import type { RunPlan } from '../../proto/run-plan.ts';
import { EVENT_STREAM, EVENT_SUBJECTS, RUN_EVENT_NAMES } from '../../proto/run-events.ts';
import type { CloudEvent } from '../../proto/run-events.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { startCoordinator } from './coordinator-process.ts';
import type { CoordinatorProcess } from './coordinator-process.ts';
import { journaled } from './journaled-events.ts';
import {
  idsIn,
  natsServerProgram,
  poll,
  startNatsServer,
  storedEvents,
  withNats,
  type NatsServerOptions,
  type NatsServerProcess,
} from './nats-server.ts';
import { expectedDigest, newTrainee, trainToTheEnd } from './scripted-training.ts';
import { ScriptedWorker, testPlan } from './scripted-worker.ts';

const found = await natsServerProgram();
const skip = 'skip' in found ? found.skip : false;
const program = 'path' in found ? found.path : '';
/** A coordinator that answers until the test has seen what it wants to see. */
const LINGER = ['--linger-seconds', '3600'];

/** A server that is killed with the test. */
async function nats(t: TestContext, options: NatsServerOptions = {}): Promise<NatsServerProcess> {
  const server = await startNatsServer(program, options);
  t.after(() => server.close());
  return server;
}

/** A run whose events go to `servers`. */
async function eventfulRun(
  servers: readonly string[],
  changes: Partial<RunPlan> = {},
): Promise<{ folder: string; plan: RunPlan }> {
  const plan = testPlan({
    ...{ totalSteps: 12, checkpointEverySteps: 4, events: [...servers] },
    ...changes,
  });
  const folder = await temporaryFolder('run');
  await writeFile(join(folder, 'run.json'), JSON.stringify(plan));
  return { folder, plan };
}

async function coordinate(
  t: TestContext,
  folder: string,
  flags: readonly string[] = [],
): Promise<CoordinatorProcess> {
  const coordinator = await startCoordinator(folder, ...flags);
  t.after(() => coordinator.child.kill('SIGKILL'));
  return coordinator;
}

/** Trains one worker to the end of the run, which has to be that of an undisturbed one. */
async function train(
  { address }: CoordinatorProcess,
  { folder, plan }: { folder: string; plan: RunPlan },
  stepMs = 0,
): Promise<void> {
  const trainee = newTrainee('a');
  const { signal } = new AbortController();
  await trainToTheEnd(address, folder, plan, trainee, { peers: [], stepMs, signal });
  assert.equal(trainee.weights.digest, expectedDigest(plan));
}

/** Trains a run to its end while somebody listens; gives the ids that were heard and what the coordinator said. */
async function heardOf(
  t: TestContext,
  {
    url,
    login,
    run,
  }: {
    readonly url: string;
    readonly login: Parameters<typeof withNats>[1];
    readonly run: { readonly folder: string; readonly plan: RunPlan };
  },
): Promise<{ heard: string[]; stderr: string }> {
  return withNats(url, login, async (connection) => {
    const heard: string[] = [];
    connection.subscribe(EVENT_SUBJECTS, {
      callback: (_, message) => void heard.push(message.json<CloudEvent>().id),
    });
    await connection.flush();
    const coordinator = await coordinate(t, run.folder);
    await train(coordinator, run);
    assert.equal(await coordinator.exited, 0, coordinator.stderr());
    await connection.flush();
    return { heard, stderr: coordinator.stderr() };
  });
}

/**
 * Waits until a stream ends in the newest event of a journal; gives what it keeps, and what the journal told then: a
 * worker may leave afterwards.
 */
const arrived = (url: string, folder: string): Promise<{ ids: string[]; told: string[] }> =>
  poll('the newest event to arrive', async () => {
    const told = await journaled(folder);
    const ids = await idsIn(url).catch((): string[] => []);
    return ids.at(-1) === told.at(-1) ? { ids, told } : undefined;
  });

const said = (coordinator: CoordinatorProcess, what: RegExp): Promise<true> =>
  poll(`the log to say ${what.source}`, () =>
    Promise.resolve(what.test(coordinator.stderr()) ? true : undefined),
  );

async function metricsOf({ metricsAddress }: CoordinatorProcess): Promise<string> {
  return (await fetch(`http://${metricsAddress}/metrics`)).text();
}

/** Makes the stream before a coordinator does, as an operator with own wishes. */
async function makeStream(url: string, config: Partial<StreamConfig>): Promise<void> {
  await withNats(url, {}, async (connection) => {
    const manager = await jetstreamManager(connection);
    await manager.streams.add({ name: EVENT_STREAM, subjects: [EVENT_SUBJECTS], ...config });
  });
}

describe('the events of a run', { skip }, () => {
  it('are in the stream in order, once each, as the journal has them', async (t) => {
    const server = await nats(t, { store: await temporaryFolder('js') });
    const run = await eventfulRun([server.url]);
    const coordinator = await coordinate(t, run.folder);
    await train(coordinator, run);
    assert.equal(await coordinator.exited, 0, coordinator.stderr());
    const events = await storedEvents(server.url);
    const ids = events.map(({ msgId }) => msgId);
    assert.deepEqual(ids, await journaled(run.folder));
    const lines = (await readFile(join(run.folder, 'journal.jsonl'), 'utf8')).trim().split('\n');
    const names = events.map(({ event }) => event.type.slice('videoloom.'.length));
    for (const [i, { subject, msgId, event }] of events.entries()) {
      assert.ok((RUN_EVENT_NAMES as readonly string[]).includes(names[i]!), names[i]);
      assert.equal(subject, `videoloom.run-a.${names[i]}`);
      assert.equal(event.id, msgId);
      assert.equal(event.specversion, '1.0');
      assert.equal(event.source, '/videoloom/runs/run-a');
      const [, seq, checksum] = /^run-a:(\d+):([0-9a-f]{8})(?:\.\d)?$/.exec(event.id)!;
      const record = JSON.parse(lines[Number(seq) - 1]!) as Record<string, unknown>;
      assert.equal(record['crc'], checksum);
      assert.equal(record['time'], event.time);
      // Where workers are reached is nobody's business.
      assert.doesNotMatch(JSON.stringify(event), /"a:[12]"|Address/);
    }
    const count = (name: string): number => names.filter((each) => each === name).length;
    assert.equal(names[0], 'run.started');
    assert.equal(names.at(-1), 'run.finished');
    assert.equal(count('worker.joined'), 1);
    assert.equal(count('generation.opened'), 1);
    assert.equal(count('checkpoint.committed'), 3);
    assert.equal(count('epoch.finished'), 2, '12 steps of 8 samples out of 37');
    assert.equal(count('run.progressed'), 12);
    assert.match(coordinator.stderr(), /events go to the stream VIDEOLOOM of nats:/);
  });

  it('of a server that comes after the start all arrive, once each', async (t) => {
    const store = await temporaryFolder('js');
    const first = await nats(t, { store });
    const { port, url } = first;
    await first.close();
    const run = await eventfulRun([url]);
    const coordinator = await coordinate(t, run.folder, LINGER);
    await said(coordinator, /EVENTS_NOT_CONNECTED.*the run goes on/);
    await train(coordinator, run);
    assert.match(await metricsOf(coordinator), /^videoloom_nats_connected 0$/m);
    await nats(t, { store, port });
    const { ids, told } = await arrived(url, run.folder);
    assert.deepEqual(ids, told);
    const metrics = await metricsOf(coordinator);
    assert.match(metrics, /^videoloom_nats_connected 1$/m);
    assert.match(metrics, /^videoloom_events_pending_records 0$/m);
    const checked = spawnSync('promtool', ['check', 'metrics'], {
      input: metrics,
      encoding: 'utf8',
    });
    // Where there is none (Debian: prometheus) that is all.
    if (checked.error === undefined) assert.equal(checked.stdout + checked.stderr, '');
  });

  it('cost no step while the server is killed, stopped and slow, and all arrive, once each', async (t) => {
    const store = await temporaryFolder('js');
    let server = await nats(t, { store });
    const { port, url } = server;
    const run = await eventfulRun([url], { totalSteps: 200 });
    const coordinator = await coordinate(t, run.folder, LINGER);
    const training = train(coordinator, run, 10);
    const reach = (number: number): Promise<true> =>
      poll(`${number} events`, async () =>
        (await journaled(run.folder).catch(() => [])).length >= number ? true : undefined,
      );
    await reach(10);
    await server.close();
    await reach(30);
    server = await nats(t, { store, port });
    await reach(50);
    server.kill('SIGSTOP');
    await training;
    server.kill('SIGCONT');
    const { ids, told } = await arrived(url, run.folder);
    assert.deepEqual(ids, told);
  });

  it('are not doubled by a coordinator that is killed again and again', async (t) => {
    const server = await nats(t, { store: await temporaryFolder('js') });
    // What is sent twice would be kept twice: the server remembers ids for a moment alone.
    await makeStream(server.url, { duplicate_window: 100_000_000 });
    const run = await eventfulRun([server.url], { totalSteps: 60 });
    for (const step of [10, 25, 40]) {
      const coordinator = await coordinate(t, run.folder);
      const ended = new AbortController();
      const options = { peers: [], stepMs: 5, signal: ended.signal };
      const training = trainToTheEnd(
        ...([coordinator.address, run.folder, run.plan, newTrainee('a'), options] as const),
      ).catch(() => undefined);
      await poll(`step ${step}`, async () => {
        const text = await readFile(join(run.folder, 'journal.jsonl'), 'utf8');
        return text.includes(`"type":"commit","step":${step},`) ? true : undefined;
      });
      coordinator.child.kill('SIGKILL');
      await coordinator.exited;
      ended.abort();
      await training;
    }
    const last = await coordinate(t, run.folder, LINGER);
    await train(last, run);
    const { ids, told } = await arrived(server.url, run.folder);
    assert.deepEqual(ids, told);
  });

  it('of a journal that was rewound, or of another run of the name, are told from those before', async (t) => {
    const server = await nats(t, { store: await temporaryFolder('js') });
    const run = await eventfulRun([server.url]);
    const first = await coordinate(t, run.folder);
    await train(first, run);
    assert.equal(await first.exited, 0, first.stderr());
    const before = await journaled(run.folder);

    // --- As a run that is brought back from a store: its journal ends with the checkpoint of step 4.
    const back = { plan: run.plan, folder: await temporaryFolder('back') };
    await cp(run.folder, back.folder, { recursive: true });
    const journal = join(back.folder, 'journal.jsonl');
    const text = await readFile(journal, 'utf8');
    const checkpoint = text.indexOf('"type":"checkpoint","step":4');
    await truncate(journal, Buffer.byteLength(text.slice(0, text.indexOf('\n', checkpoint) + 1)));
    for (const step of [8, 12]) {
      const name = `step-${String(step).padStart(10, '0')}`;
      await rm(join(back.folder, 'checkpoints', name), { recursive: true, force: true });
    }
    await rm(join(back.folder, 'summary.json'), { force: true });
    const common = await journaled(back.folder);
    const second = await coordinate(t, back.folder);
    await train(second, back);
    assert.equal(await second.exited, 0, second.stderr());
    const rewound = await journaled(back.folder);
    assert.deepEqual(rewound.slice(0, common.length), before.slice(0, common.length));
    const both = [...before, ...rewound.slice(common.length)];
    assert.deepEqual(await idsIn(server.url), both);

    // --- A run of the same name in a new folder.
    const other = await eventfulRun([server.url]);
    const third = await coordinate(t, other.folder);
    await train(third, other);
    assert.equal(await third.exited, 0, third.stderr());
    assert.deepEqual(await idsIn(server.url), [...both, ...(await journaled(other.folder))]);
  });

  it('go to whoever listens where the server has no JetStream, which is said once', async (t) => {
    const server = await nats(t);
    const run = await eventfulRun([server.url]);
    const { heard, stderr } = await heardOf(t, { url: server.url, login: {}, run });
    assert.equal(stderr.match(/it has no JetStream for us/g)?.length, 1);
    assert.deepEqual(heard, await journaled(run.folder));
  });

  it('cost nothing but a line of the log where the server is none, says nothing, or hangs up', async (t) => {
    const answers: ((socket: Socket) => void)[] = [
      (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'),
      () => undefined,
      (socket) => socket.destroy(),
      (socket) => socket.write('INFO {"max_payload":1048576,"headers":true}\r\nrubbish\r\n\r\n'),
      (socket) => socket.write('INFO {"max_payl\r\n'),
    ];
    const urls = await Promise.all(
      answers.map(async (answer) => {
        const sockets = new Set<Socket>();
        const server = createServer((socket) => {
          sockets.add(socket);
          socket.on('error', () => undefined);
          answer(socket);
        });
        await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
        t.after(() => {
          for (const socket of sockets) socket.destroy();
          server.close();
        });
        return `nats://127.0.0.1:${(server.address() as AddressInfo).port}`;
      }),
    );
    const run = await eventfulRun(urls);
    const coordinator = await coordinate(t, run.folder);
    for (const url of urls)
      await said(coordinator, new RegExp(`events do not get to ${url.replaceAll('.', '\\.')}: `));
    await train(coordinator, run);
    assert.equal(await coordinator.exited, 0, coordinator.stderr());
    const number = (await journaled(run.folder)).length;
    assert.match(
      coordinator.stderr(),
      new RegExp(`"code":"EVENTS_NOT_DELIVERED","events":${number},`),
    );
  });

  it('wait in the journal while a stream is full, and are counted at the end', async (t) => {
    const server = await nats(t, { store: await temporaryFolder('js') });
    await makeStream(server.url, { max_msgs: 3, discard: DiscardPolicy.New });
    const run = await eventfulRun([server.url]);
    const coordinator = await coordinate(t, run.folder);
    await said(coordinator, /events go to the stream/);
    await train(coordinator, run);
    assert.equal(await coordinator.exited, 0, coordinator.stderr());
    const all = await journaled(run.folder);
    assert.deepEqual(await idsIn(server.url), all.slice(0, 3));
    assert.match(coordinator.stderr(), new RegExp(`"events":${all.length - 3},`));

    // --- Once there is room, a coordinator of the finished run sends them.
    await withNats(server.url, {}, async (connection) => {
      const manager = await jetstreamManager(connection);
      await manager.streams.update(EVENT_STREAM, { max_msgs: -1 });
    });
    const again = await coordinate(t, run.folder);
    assert.equal(await again.exited, 0, again.stderr());
    const ids = await idsIn(server.url);
    assert.deepEqual(ids, await journaled(run.folder));
    assert.equal(ids.length, all.length + 1, 'and tells that it took the run over');
  });

  it('that are too large for the server are left out and counted', async (t) => {
    const config = join(await temporaryFolder('conf'), 'nats.conf');
    await writeFile(config, 'max_payload: 2048\n');
    const server = await nats(t, {
      store: await temporaryFolder('js'),
      args: ['--config', config],
    });
    const run = await eventfulRun([server.url]);
    const coordinator = await coordinate(t, run.folder, LINGER);
    const worker = await ScriptedWorker.join(coordinator.address, 'a');
    t.after(() => worker.leave());
    await worker.generation();
    const bad = (sample: number, message: string) => ({
      skipped: [{ ...{ sample, substitute: 20, reason: 'DECODE_FAILED', message }, place: 0 }],
    });
    await worker.vote(1, 1, bad(1, 'x'.repeat(999)));
    await worker.vote(1, 2, bad(2, 'torn'));
    await worker.vote(1, 3, bad(2, 'torn'));
    await arrived(server.url, run.folder);
    const quarantined = (await storedEvents(server.url))
      .filter(({ event }) => event.type === 'videoloom.data.quarantined')
      .map(({ event }) => event.data);
    const samples = [{ sample: 2, reason: 'DECODE_FAILED', message: 'torn' }];
    assert.deepEqual(quarantined, [{ step: 2, numSamples: 1, samples }], 'each sample once');
    assert.match(
      await metricsOf(coordinator),
      /^videoloom_events_dropped_total\{reason="too-large"\} 1$/m,
    );
  });

  it('are sent with what a file says, which is never shown, and may change while the run goes on', async (t) => {
    const secrets = await temporaryFolder('secrets');
    const [file, config] = [join(secrets, 'nats'), join(secrets, 'nats.conf')];
    const admit = (password: string): Promise<void> =>
      writeFile(config, `authorization { user: coordinator, password: "${password}" }\n`);
    await admit('pa55:word');
    const server = await nats(t, {
      store: await temporaryFolder('js'),
      args: ['--config', config],
    });
    const run = await eventfulRun([server.url]);
    process.env['VIDEOLOOM_NATS_CREDENTIALS'] = file;
    t.after(() => delete process.env['VIDEOLOOM_NATS_CREDENTIALS']);
    await assert.rejects(
      coordinate(t, run.folder),
      /ended with 2: EVENTS_CREDENTIALS_UNREADABLE: /,
    );
    await writeFile(file, 'coordinator:wrong-one\n');
    await chmod(file, 0o644);
    await assert.rejects(coordinate(t, run.folder), /ended with 2: SECRET_EXPOSED: .*chmod 600/);
    await chmod(file, 0o600);
    const coordinator = await coordinate(t, run.folder, LINGER);
    await said(coordinator, /Authorization Violation/);
    await writeFile(file, 'coordinator:pa55:word\n');
    const user = 'coordinator';
    const ids = async (pass: string): Promise<string[]> =>
      (await storedEvents(server.url, { user, pass })).map(({ msgId }) => msgId);
    const first = await poll('the first event', async () => {
      const own = await ids('pa55:word');
      return own.length > 0 ? own : undefined;
    });
    assert.deepEqual(first, await journaled(run.folder));

    // --- What was right is so no more.
    await admit('n3w-word');
    server.kill('SIGHUP');
    await said(coordinator, /events go to the stream(.|\n)*EVENTS_NOT/);
    await train(coordinator, run);
    await writeFile(file, 'coordinator:n3w-word\n');
    const all = await journaled(run.folder);
    const last = await poll('the last event', async () => {
      const own = await ids('n3w-word').catch((): string[] => []);
      return own.length >= all.length ? own : undefined;
    });
    assert.deepEqual(last, all);
    assert.doesNotMatch(coordinator.stderr(), /pa55|wrong-one|n3w/);
  });

  it('are sent without JetStream by a user who may not use it', async (t) => {
    const config = join(await temporaryFolder('conf'), 'nats.conf');
    await writeFile(
      config,
      'authorization { users: [ { user: a, password: b, permissions: { publish: "videoloom.>" } }, { user: all, password: b } ] }\n',
    );
    const file = join(await temporaryFolder('secrets'), 'nats');
    await writeFile(file, 'a:b', { mode: 0o600 });
    process.env['VIDEOLOOM_NATS_CREDENTIALS'] = file;
    t.after(() => delete process.env['VIDEOLOOM_NATS_CREDENTIALS']);
    const server = await nats(t, {
      store: await temporaryFolder('js'),
      args: ['--config', config],
    });
    const run = await eventfulRun([server.url]);
    const login = { user: 'all', pass: 'b' };
    const { heard, stderr } = await heardOf(t, { url: server.url, login, run });
    assert.match(stderr, /no JetStream for us, this user may not use it/);
    assert.deepEqual(heard, await journaled(run.folder));
  });

  it('do not leave the machine in plain text, and no address bears a password', async (t) => {
    const far = await eventfulRun(['nats://127.0.0.1', 'nats://192.0.2.1:4222']);
    await assert.rejects(
      coordinate(t, far.folder),
      /ended with 2: PLAIN_TEXT_OFF_LOOPBACK: events would go to 192\.0\.2\.1:4222, /,
    );
    const told = await eventfulRun(['nats://me:pa55@127.0.0.1']);
    await assert.rejects(coordinate(t, told.folder), (error: Error) => {
      assert.match(error.message, /^ended with 2: EVENTS_CREDENTIALS_IN_ADDRESS: /);
      assert.doesNotMatch(error.message, /pa55/);
      return true;
    });
  });
});
