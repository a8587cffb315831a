import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { messageOf } from '../../proto/errors.ts';
import { freePorts } from '../../proto/test/free-ports.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { childrenOf } from './children.ts';
import { reachStep, startVideoloom, type Started } from './command.ts';

/** What `deploy/prometheus` and `deploy/grafana` say, to a real Prometheus that watches a real run. */
const FOLDER = fileURLToPath(new URL('../prometheus', import.meta.url));
const DASHBOARD = fileURLToPath(new URL('../grafana/videoloom.json', import.meta.url));
const RUN = 'watched';
/** Of what has not happened in a run whose films all decode. */
const MAY_BE_EMPTY = /videoloom_samples_skipped_total|videoloom_decode_failures_total/;
const LIMIT_MS = 60_000;

const skip =
  spawnSync('prometheus', ['--version']).status === 0
    ? false
    : 'there is no prometheus (Debian: prometheus)';
const work = await temporaryFolder('prometheus');
const started: (() => void)[] = [];
after(() => {
  for (const end of started) end();
});

test('the alerts say what they are to, and only then', { skip }, () => {
  for (const args of [
    ['check', 'config', 'prometheus.yml'],
    ['test', 'rules', 'alerts.test.yml'],
  ]) {
    const { status, stdout, stderr } = spawnSync('promtool', args, {
      cwd: FOLDER,
      encoding: 'utf8',
    });
    assert.equal(status, 0, stdout + stderr);
  }
});

test('Prometheus finds the processes of a run, and again when one has died', { skip }, async () => {
  const [metricsPort, ownPort] = (await freePorts(2)) as [number, number];
  const run = startVideoloom(
    [
      ...['train', 'videobert', '--preset', 'tiny', '--steps', '1000000', '--workers', '2'],
      ...['--out', RUN, '--metrics', `127.0.0.1:${metricsPort}`],
      // Nobody is there: the run goes on, and counts what waits.
      ...['cluster.events=nats://127.0.0.1:1', 'data.demoTrainClips=12', 'data.demoHeldOutClips=4'],
    ],
    { cwd: work },
  );
  started.push(() => {
    run.killAll();
  });
  await reachStep(join(work, RUN), 12, run);
  const prometheus = await startPrometheus(metricsPort, ownPort);

  const found = await poll('two workers and a coordinator', async () => {
    const targets = await prometheus.upTargets();
    return targets.length === 3 ? targets : `found ${JSON.stringify(targets)}`;
  });
  assert.deepEqual(found.map(({ role, worker }) => [role, worker ?? '']).sort(), [
    ['coordinator', ''],
    ['worker', 'worker-0'],
    ['worker', 'worker-1'],
  ]);
  for (const target of found) assert.equal(target.run, RUN);

  await killWorker(run, 'worker-1');
  const old = found.find(({ worker }) => worker === 'worker-1')!.instance;
  await poll('the worker that was started again', async () => {
    const targets = await prometheus.upTargets();
    const again = targets.find(({ worker }) => worker === 'worker-1');
    const isThere = targets.length === 3 && again?.instance !== old;
    return isThere ? [] : `found ${JSON.stringify(targets)}`;
  });

  // Every figure that the dashboard shows is there, and every name that an alert speaks of.
  const expressions = await dashboardExpressions();
  assert.ok(expressions.length > 20);
  await poll('all figures of the dashboard', async () => {
    const empty: string[] = [];
    for (const expression of expressions) {
      const isHere = (await prometheus.query(expression)).length > 0;
      if (!isHere && !MAY_BE_EMPTY.test(expression)) empty.push(expression);
    }
    return empty.length === 0 ? empty : `nothing for ${empty.join('\n')}`;
  });
  const rules = await ruleExpressions();
  for (const expression of rules) await prometheus.query(expression);
  const known = await prometheus.metricNames();
  const named = [...expressions, ...rules].flatMap(
    (expression) => expression.match(/(?<![:\w~"])videoloom_\w+/g) ?? [],
  );
  const unknown = named.filter((name) => !known.has(name.replace(/_(bucket|sum|count)$/, '')));
  assert.deepEqual(unknown, []);
  assert.deepEqual(await prometheus.alerts(), []);
});

interface Target {
  readonly instance: string;
  readonly run?: string;
  readonly role?: string;
  readonly worker?: string;
}

/** A Prometheus with the files of the folder, which watches the run whose coordinator serves at `metricsPort`. */
async function startPrometheus(metricsPort: number, port: number) {
  for (const name of ['prometheus.yml', 'alerts.yml']) {
    const text = await readFile(join(FOLDER, name), 'utf8');
    const own = text.replaceAll('127.0.0.1:9464', `127.0.0.1:${metricsPort}`);
    await writeFile(join(work, name), own.replaceAll(/(interval: )\d+s/g, '$11s'));
  }
  const args = [
    ...['--config.file', join(work, 'prometheus.yml'), '--storage.tsdb.path', join(work, 'tsdb')],
    ...['--web.listen-address', `127.0.0.1:${port}`],
  ];
  const child = spawn('prometheus', args, { stdio: 'ignore' });
  started.push(() => child.kill('SIGKILL'));
  const ask = async (path: string): Promise<object> => {
    const response = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`);
    const { status, data, error } = (await response.json()) as Record<string, unknown>;
    assert.equal(status, 'success', `${path}: ${String(error)}`);
    return data as object;
  };
  await poll('Prometheus', () => ask('status/runtimeinfo').catch(messageOf));
  return {
    async upTargets(): Promise<Target[]> {
      const { activeTargets } = (await ask('targets?state=active')) as {
        activeTargets: { labels: Target; health: string }[];
      };
      return activeTargets.filter(({ health }) => health === 'up').map(({ labels }) => labels);
    },
    async query(expression: string): Promise<readonly unknown[]> {
      const { result } = (await ask(`query?query=${encodeURIComponent(expression)}`)) as {
        result: unknown[];
      };
      return result;
    },
    async metricNames(): Promise<ReadonlySet<string>> {
      return new Set(Object.keys(await ask('metadata')));
    },
    async alerts(): Promise<unknown[]> {
      return ((await ask('alerts')) as { alerts: unknown[] }).alerts;
    },
  };
}

async function dashboardExpressions(): Promise<string[]> {
  const { panels } = JSON.parse(await readFile(DASHBOARD, 'utf8')) as {
    panels: { targets: { expr: string }[] }[];
  };
  return panels.flatMap(({ targets }) => targets.map(({ expr }) => expr.replaceAll('$run', RUN)));
}

async function ruleExpressions(): Promise<string[]> {
  const { groups } = parse(await readFile(join(FOLDER, 'alerts.yml'), 'utf8')) as {
    groups: { rules: { expr: string }[] }[];
  };
  return groups.flatMap(({ rules }) => rules.map(({ expr }) => expr));
}

async function killWorker(run: Started, id: string): Promise<void> {
  const children = await childrenOf(run.child.pid!);
  const worker = children.find(({ command }) => command.includes(`\0--id\0${id}\0`));
  process.kill(worker!.pid, 'SIGKILL');
}

/** Asks until there is an answer; a text says why there is none yet. */
async function poll<T extends object>(what: string, ask: () => Promise<T | string>): Promise<T> {
  const startMs = performance.now();
  for (;;) {
    const answer = await ask();
    if (typeof answer !== 'string') return answer;
    if (performance.now() - startMs > LIMIT_MS)
      throw new Error(`${what}: not within ${LIMIT_MS / 1000} s: ${answer}`);
    await delay(200);
  }
}
