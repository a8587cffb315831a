import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { followJournal, type JournalEvent, type RunJournal } from '../drill/run-journal.ts';
import { firstJsonLine } from '../processes.ts';
import { auditFolder } from '../reports/audit.ts';
import { compiled } from '../../proto/compiled.mjs';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';

/**
 * The network between two workers loses all packets, and both still reach the coordinator. Nothing closes, so that
 * each waits for the other. In a network of its own (Linux namespaces), with an address a worker; what the kernel of one
 * host sends to an address of its own comes from that address, too.
 */
const mainOf = (program: string): string =>
  compiled(new URL(`../../${program}/main.ts`, import.meta.url));
const ADDRESSES = ['10.77.0.1', '10.77.0.2'];
const FIELDS = [
  // Never reached: the test ends the run when it has seen all.
  ...['train.steps=1000000', 'train.microbatches=4', 'train.microbatchSize=2'],
  ...['cluster.workers=2', 'cluster.detectWithin=2', 'cluster.sharedMemory=false'],
  ...['checkpoint.everySteps=500', 'data.demoTrainClips=6', 'data.demoHeldOutClips=2'],
];
const LIMIT_MS = 240_000;
const skip = whyNot();
const work = await temporaryFolder('work');
const children: ChildProcess[] = [];

function whyNot(): string | false {
  try {
    execFileSync('unshare', ['-n', 'ip', 'rule', 'list'], { stdio: 'ignore' });
    execFileSync('nsenter', ['--version'], { stdio: 'ignore' });
    return false;
  } catch {
    return 'needs Linux, the right to make a network namespace, and the commands unshare, nsenter and ip';
  }
}

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(
    children.map(
      async (child) => child.exitCode ?? child.signalCode ?? (await once(child, 'exit')),
    ),
  );
});

test(
  'a dead link between two workers stops the run for seconds, and its end brings both back',
  { skip },
  async () => {
    const run = join(work, 'run');
    const set = FIELDS.flatMap((field) => ['--set', field]);
    const prepare = ['prepare', 'videobert', '--preset', 'tiny', '--out', run, ...set];
    execFileSync(process.execPath, [mainOf('worker'), ...prepare], {
      ...{ cwd: work, stdio: ['ignore', 'ignore', 'inherit'] },
    });
    const network = await openNetwork();
    const inside = (program: string, args: readonly string[]): ChildProcess => {
      const node = [process.execPath, mainOf(program), ...args];
      const child = spawn('nsenter', ['-t', network, '-n', ...node], {
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      children.push(child);
      return child;
    };
    const coordinator = inside('coordinator', ['--run', run, '--listen', '127.0.0.1:0']);
    const { address } = await firstJsonLine<{ address: string }>(coordinator, 'the coordinator');
    for (const [index, host] of ADDRESSES.entries()) {
      const id = `worker-${index}`;
      inside('worker', [
        ...['train', '--run', run, '--coordinator', address, '--id', id],
        ...['--listen', host, '--insecure'],
      ]).stdout!.resume();
    }
    const journal = followJournal(run);
    await trainsWith(journal, 2, 0);

    const cutMs = Date.now();
    const from = journal.events.length;
    rules(network, 'add');
    const lost = await seen(journal, from, ({ type }) => type === 'worker-lost');
    assert.equal(lost.reason, 'unreachable');
    assert.match(lost.message!, /sits out for 30 s/);
    const alone = await trainsWith(journal, 1, from);
    console.log(`training again ${alone.atMs - cutMs} ms after the link died`);

    rules(network, 'del');
    await trainsWith(journal, 2, journal.events.length);
    coordinator.kill('SIGTERM');
    await once(coordinator, 'exit');
    const { audit } = await auditFolder(run);
    assert.deepEqual(audit.problems, []);
  },
);

/** Opens an empty network with the workers' addresses; gives the id of a process in it. */
async function openNetwork(): Promise<string> {
  const addresses = ADDRESSES.map((address) => `ip addr add ${address}/32 dev lo`);
  // Rules of ours come before the one that finds the addresses of this host.
  const order = ['ip rule add pref 2 lookup local', 'ip rule del pref 0'];
  const script = ['ip link set lo up', ...addresses, ...order, 'echo open', 'exec sleep 600'];
  const child = spawn('unshare', ['-n', 'sh', '-ec', script.join('\n')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  await once(child.stdout, 'data');
  return String(child.pid);
}

/** Drops what the workers send to each other, or no longer. */
function rules(network: string, verb: 'add' | 'del'): void {
  for (const address of ADDRESSES) {
    const rule = ['pref', '1', 'from', address, 'to', address, 'blackhole'];
    execFileSync('nsenter', ['-t', network, '-n', 'ip', 'rule', verb, ...rule]);
  }
}

async function seen(
  journal: RunJournal,
  from: number,
  fits: (event: JournalEvent) => boolean,
): Promise<JournalEvent> {
  const event = await journal.next(fits, { from, limitMs: LIMIT_MS });
  assert.ok(event !== undefined, `not seen in ${JSON.stringify(journal.events.slice(-4))}`);
  return event;
}

/** The first step that so many workers have committed together, of those told of from `from` on. */
async function trainsWith(journal: RunJournal, count: number, from: number): Promise<JournalEvent> {
  const isTheirs = (event: JournalEvent): boolean =>
    event.type === 'commit' &&
    journal.events.find(
      (other) => other.type === 'generation' && other.generation === event.generation,
    )?.members?.length === count;
  return seen(journal, from, isTheirs);
}
