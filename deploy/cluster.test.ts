import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { testPlan } from '../coordinator/test/scripted-worker.ts';
import { parseAddress } from '../proto/address.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { COORDINATOR, startCluster, type Cluster } from './cluster.ts';

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
