import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { testPlan } from '../coordinator/test/scripted-worker.ts';
import { parseAddress } from '../proto/address.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { COORDINATOR, startCluster, type Cluster } from './cluster.ts';
import { childrenOf } from './test/children.ts';
import { committedStep, reachStep, startVideoloom } from './test/command.ts';
import { makeTlsFolder } from './test/tls-folder.ts';

/** The coordinator of a run whose workers somebody else starts. */
async function coordinatorAlone(
  t: TestContext,
): Promise<{ cluster: Cluster; folder: string; said: string[] }> {
  const folder = await temporaryFolder('cluster');
  await mkdir(join(folder, 'logs'));
  await writeFile(join(folder, 'run.json'), JSON.stringify(testPlan({ detectWithinMs: 200 })));
  const said: string[] = [];
  const cluster = await startCluster(
    { folder, furtherStages: [], existed: false, workers: 1, engine: 'tfjs-cpu', pluginPath: '' },
    {
      ...{ metricsAddress: '127.0.0.1:0', listenAddress: '127.0.0.1:0', env: process.env },
      ...{ startsNoWorkers: true, say: (text) => said.push(text) },
    },
  );
  t.after(() => {
    cluster.kill();
  });
  return { cluster, folder, said };
}

test('a coordinator that is still ending its step is waited for', async (t) => {
  const { cluster } = await coordinatorAlone(t);
  const coordinator = cluster.processes().get(COORDINATOR)!;
  coordinator.kill('SIGSTOP');
  const ended = cluster.end();
  await delay(12_000);
  coordinator.kill('SIGCONT');
  await ended;
  assert.deepEqual([coordinator.exitCode, coordinator.signalCode], [75, null]);
});

test('a worker that cannot start any more ends the run when it is the last one', async (t) => {
  const work = await temporaryFolder('work');
  const tls = await makeTlsFolder(2);
  const run = join(work, 'run');
  const started = startVideoloom(
    [
      ...['train', 'videobert', '--preset', 'tiny', '--steps', '1000000', '--workers', '2'],
      ...['--out', 'run', '--tls', tls.folder, 'data.demoTrainClips=6', 'data.demoHeldOutClips=2'],
      ...['cluster.detectWithin=20'],
    ],
    { cwd: work },
  );
  t.after(() => {
    started.killAll();
  });
  await reachStep(run, 2, started);
  /** Takes a worker's certificate away and kills it: it has none when it is started again. */
  const lose = async (id: string): Promise<void> => {
    await rm(join(tls.folder, 'workers', `${id}.pem`));
    const workers = await childrenOf(started.child.pid!);
    process.kill(workers.find(({ command }) => command.includes(id))!.pid, 'SIGKILL');
  };
  await lose('worker-1');
  while (!started.output().includes('the others go on') && started.child.exitCode === null)
    await delay(50);
  assert.match(started.output(), /^worker-1 ended with code 2, the others go on: .*worker-1\.pem/m);
  await reachStep(run, (await committedStep(run)) + 3, started);
  await lose('worker-0');
  const { code, output } = await started.ended;
  assert.equal(code, 1);
  assert.match(output, /PROCESS_FAILED: worker-0 ended with code 2: .*worker-0\.pem/);
});

test('ports that others take when the coordinator dies do not end the run', async (t) => {
  const { cluster, folder, said } = await coordinatorAlone(t);
  const { address, metricsAddress } = cluster.addresses;
  const first = cluster.processes().get(COORDINATOR)!;
  first.kill('SIGKILL');
  await once(first, 'exit');
  const taken = [address, metricsAddress].map((each) =>
    createServer().listen(parseAddress(each).port, '127.0.0.1'),
  );
  t.after(() => {
    for (const server of taken) server.close();
  });
  await Promise.all(taken.map((server) => once(server, 'listening')));
  const freed = setTimeout(() => taken[0]!.close(), 2000);
  t.after(() => {
    clearTimeout(freed);
  });
  const led = (async () => {
    for (;;) {
      const text = await readFile(join(folder, 'coordinator.json'), 'utf8');
      const whereabouts = JSON.parse(text) as { address: string; pid: number };
      if (whereabouts.pid !== first.pid) return whereabouts;
      await delay(50);
    }
  })();
  const { address: now } = await Promise.race([led, cluster.broken]);
  assert.equal(now, address);
  assert.match(said.join('\n'), /the metrics are at .* now/);
});
