import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { on } from 'node:events';
import { readdirSync } from 'node:fs';
import { platform } from 'node:os';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MeshGeneration } from '../collectives.ts';
import { microbatchRange } from '../tree-sum.ts';
import { gradientOf, treeSum } from './gradients.ts';
import type { PeerReport, PeerSetting, PeerTask } from './peer.ts';

const MOST_ELEMENTS = 1_000_000;
// Four peers on two cores begin seconds apart where other work fills these.
const SETTING: PeerSetting = { timeoutMs: 8000, numElements: MOST_ELEMENTS };
const canShare = platform() === 'linux';
const TRANSPORTS: Record<string, Partial<PeerSetting>> = {
  ...(canShare ? { 'shared memory': {} } : {}),
  tree: { sharedMemory: false },
  ring: { allReduce: 'ring' },
};

interface Peer {
  readonly child: ChildProcess;
  readonly nextReport: () => Promise<PeerReport>;
  readonly workerId: string;
  readonly address: string;
}

/** What a peer reports, one after the other, also while nobody asks. */
function reportsOf(child: ChildProcess): () => Promise<PeerReport> {
  const messages = on(child, 'message');
  return async () => {
    const { value } = (await messages.next()) as { value: [PeerReport] };
    return value[0];
  };
}

async function withPeers(
  count: number,
  setting: Partial<PeerSetting>,
  body: (peers: Peer[]) => Promise<void>,
): Promise<void> {
  const argument = JSON.stringify({ ...SETTING, ...setting });
  const children = Array.from({ length: count }, (_, index) =>
    fork(fileURLToPath(import.meta.resolve('./peer.ts')), [`w${index}`, argument], {
      execArgv: ['--import', 'tsx'],
    }),
  );
  try {
    const reporters = children.map(reportsOf);
    const reports = await Promise.all(reporters.map((next) => next()));
    await body(
      children.map((child, index) => ({
        ...{ child, nextReport: reporters[index]!, workerId: `w${index}` },
        address: (reports[index] as { address: string }).address,
      })),
    );
  } finally {
    for (const child of children) child.kill('SIGKILL');
  }
}

/** Names of ours in the memory that all processes of the machine share. */
function sharedFiles(): string[] {
  return canShare ? readdirSync('/dev/shm').filter((name) => name.includes('videoloom')) : [];
}

function generationOf(
  number: number,
  peers: readonly Peer[],
  numMicrobatches: number,
): MeshGeneration {
  return {
    number,
    members: peers.map(({ workerId, address }, rank) => ({
      ...{ rank, workerId, tensorAddress: address },
      ...microbatchRange(rank, peers.length, numMicrobatches),
    })),
  };
}

async function reduceOn(
  peers: readonly Peer[],
  task: Omit<PeerTask, 'rank'>,
): Promise<PeerReport[]> {
  return Promise.all(
    peers.map(({ child, nextReport }, rank) => {
      child.send({ ...task, rank } satisfies PeerTask);
      return nextReport();
    }),
  );
}

function hashOfSum(numMicrobatches: number, numElements: number): string {
  const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
    gradientOf(1, m, numElements),
  );
  return createHash('sha256')
    .update(new Uint8Array(treeSum(gradients).buffer))
    .digest('hex');
}

/** Starts exchanges without end, and gives the next report of each once all are in them. */
async function inExchanges(
  peers: readonly Peer[],
  generation: MeshGeneration,
): Promise<Promise<PeerReport>[]> {
  const endless = { numElements: MOST_ELEMENTS, numSteps: 1e9, isOneGradient: true };
  const started = await reduceOn(peers, { generation, ...endless, reportsStart: true });
  for (const report of started) assert.deepEqual(report, { started: true });
  return peers.map(({ nextReport }) => nextReport());
}

for (const [name, setting] of Object.entries(TRANSPORTS)) {
  test(`${name}: processes are killed and stopped in the middle of a sum; the others say which, and go on`, async () => {
    const files = sharedFiles();
    await withPeers(4, setting, async (peers) => {
      let number = 0;
      const check = async (members: readonly Peer[], numMicrobatches: number): Promise<void> => {
        const generation = generationOf(++number, members, numMicrobatches);
        const task = { generation, numElements: 50_003, numSteps: 2 };
        const reports = await reduceOn(members, task);
        for (const report of reports) {
          assert.ok('hashes' in report, JSON.stringify(report));
          assert.deepEqual(report, reports[0]);
          const isTree = name !== 'ring' || members.length === 1;
          if (isTree) assert.equal(report.hashes[0], hashOfSum(numMicrobatches, 50_003));
        }
      };
      for (const worldSize of [4, 1, 2, 3]) await check(peers.slice(0, worldSize), 8);

      let left = peers;
      for (const delayMs of [5, 18]) {
        const rank = left.length - 1;
        const reports = await inExchanges(left, generationOf(++number, left, 4));
        await sleep(delayMs);
        left[rank]!.child.kill('SIGKILL');
        left = left.slice(0, rank);
        for (const report of await Promise.all(reports.slice(0, rank))) {
          assert.ok('code' in report, JSON.stringify(report));
          assert.equal(report.code, 'PEER_LOST');
          // Who sees it leaves, which another may see before.
          assert.match(report.message, /rank \d \(worker w\d at 127\.0\.0\.1:\d+\)/);
        }
        await check(left, 4);
      }

      const [survivor, stopped] = left as [Peer, Peer];
      const [report, late] = await inExchanges(left, generationOf(++number, left, 4));
      stopped.child.kill('SIGSTOP');
      const found = await report!;
      assert.ok('code' in found, JSON.stringify(found));
      assert.deepEqual([found.code, found.rank], ['PEER_TIMEOUT', 1], found.message);
      const redone = check([survivor], 4);
      stopped.child.kill('SIGCONT');
      await redone;
      assert.ok('code' in (await late!));
      await check(left, 4);
    });
    assert.deepEqual(sharedFiles(), files);
  });
}
