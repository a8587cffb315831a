import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { scheduleOf } from '../chaos/schedule.ts';
import { drillCommand } from './command.ts';
import { findLeftovers, MARK } from './leftovers.ts';
import { openSilentProxy } from './silent-proxy.ts';

test('a silent proxy forwards nothing and closes nothing, and delivers all once it speaks', async () => {
  const server = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const proxy = await openSilentProxy(`127.0.0.1:${port}`);
  const client = connect(Number(proxy.address.split(':')[1]), '127.0.0.1');
  try {
    const chunks: Buffer[] = [];
    const echoed = (): string => Buffer.concat(chunks).toString();
    client.on('data', (chunk: Buffer) => chunks.push(chunk));
    client.write('a');
    while (echoed() !== 'a') await delay(5);
    proxy.fallSilent();
    client.write('b');
    await delay(200);
    assert.equal(echoed(), 'a');
    assert.equal(client.closed, false);
    proxy.speak();
    client.write('c');
    while (echoed() !== 'abc') await delay(5);
  } finally {
    client.destroy();
    proxy.close();
    server.close();
  }
});

test('a process and temporary files that a run leaves are found, wherever the process ended up', async (context) => {
  if (process.platform !== 'linux') {
    context.skip('there is no /proc');
    return;
  }
  const folder = await temporaryFolder('drill');
  const temporary = join(folder, 'tmp');
  await mkdir(temporary, { recursive: true });
  await writeFile(join(folder, 'summary.json'), '');
  await writeFile(join(folder, 'manifest.json.tmp-12'), '');
  await writeFile(join(temporary, 'a.sock'), '');
  const env = { ...process.env, [MARK]: 'of-this-test' };
  const child = spawn('sleep', ['60'], { detached: true, stdio: 'ignore', env });
  try {
    const found = await findLeftovers('of-this-test', { folders: [folder], temporary });
    assert.deepEqual(found.processes, [`${child.pid!} sleep 60`]);
    assert.deepEqual([...found.files].sort(), [
      join(folder, 'manifest.json.tmp-12'),
      join(temporary, 'a.sock'),
    ]);
  } finally {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
});

test('a seed alone decides a schedule, and many seeds hold every kind of fault', () => {
  assert.deepEqual(scheduleOf(17, 30), scheduleOf(17, 30));
  const schedules = Array.from({ length: 50 }, (_, index) => scheduleOf(index + 1, 30));
  const kinds = new Set(schedules.flatMap(({ faults }) => faults.map(({ kind }) => kind)));
  assert.equal(kinds.size, 8, [...kinds].join());
  for (const { faults } of schedules) assert.ok(faults.every(({ step }) => step < 28));
});

test('a drill removes nothing before it has the run to compare with, and refuses one in its own folder', async () => {
  const folder = await temporaryFolder('drill');
  const out = join(folder, 'drill');
  const undisturbed = join(out, 'undisturbed');
  const summary = join(undisturbed, 'summary.json');
  await mkdir(undisturbed, { recursive: true });
  await writeFile(join(out, 'drill.json'), '{}');
  await writeFile(summary, '{"weightsSha256": "ab", "skippedSamples": 0}');
  const against = (run: string): Promise<number> =>
    drillCommand(['no-recipe'], {
      ...{ out, against: run, seed: '1', hasSteps: false, env: process.env },
    });
  await assert.rejects(against(undisturbed), { code: 'DRILL_AGAINST_OWN' });
  await assert.rejects(against(join(folder, 'nowhere')), { code: 'RUN_NOT_FINISHED' });
  assert.match(await readFile(summary, 'utf8'), /"ab"/);
});
