import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import type { MeshGeneration } from '../collectives.ts';
import { microbatchRange } from '../tree-sum.ts';
import { gradientOf, treeSum } from './gradients.ts';
import type { PeerReport, PeerTask } from './peer.ts';

interface Peer {
  readonly child: ChildProcess;
  readonly workerId: string;
  readonly address: string;
}

async function nextReport(child: ChildProcess): Promise<PeerReport> {
  const [report] = (await once(child, 'message')) as [PeerReport];
  return report;
}

async function withPeers(count: number, body: (peers: Peer[]) => Promise<void>): Promise<void> {
  const children = Array.from({ length: count }, (_, index) =>
    fork(fileURLToPath(import.meta.resolve('./peer.ts')), [`w${index}`], {
      execArgv: ['--import', 'tsx'],
    }),
  );
  try {
    const reports = await Promise.all(children.map(nextReport));
    await body(
      children.map((child, index) => ({
        ...{ child, workerId: `w${index}` },
        address: (reports[index] as { address: string }).address,
      })),
    );
  } finally {
    for (const child of children) child.kill('SIGKILL');
  }
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
    peers.map(({ child }, rank) => {
      child.send({ ...task, rank } satisfies PeerTask);
      return nextReport(child);
    }),
  );
}

test('one, two and three processes get the bits of the scalar tree', async () => {
  const [numElements, numMicrobatches] = [100_003, 8];
  const gradients = Array.from({ length: numMicrobatches }, (_, m) =>
    gradientOf(1, m, numElements),
  );
  const expected = createHash('sha256')
    .update(new Uint8Array(treeSum(gradients).buffer))
    .digest('hex');
  await withPeers(3, async (peers) => {
    for (const [index, worldSize] of [3, 1, 2].entries()) {
      const members = peers.slice(0, worldSize);
      const generation = generationOf(index + 1, members, numMicrobatches);
      for (const report of await reduceOn(members, { generation, numElements, numSteps: 1 })) {
        assert.deepEqual(report, { hashes: [expected] });
      }
    }
  });
});

test('when a process is killed in the middle, the others say which, and go on in the next generation', async () => {
  const numElements = 4_000_000; // 16 MB each: seconds of steps, always in the middle of one
  await withPeers(3, async (peers) => {
    const victim = peers[2]!;
    const all = reduceOn(peers, {
      generation: generationOf(1, peers, 4),
      numElements,
      numSteps: 1000,
    });
    all.catch(() => undefined);
    const survivors = peers.slice(0, 2);
    const reports = survivors.map(({ child }) => nextReport(child));
    await new Promise((resolve) => setTimeout(resolve, 1500));
    victim.child.kill('SIGKILL');
    for (const report of await Promise.all(reports)) {
      assert.ok('code' in report, JSON.stringify(report));
      assert.equal(report.code, 'PEER_LOST');
      assert.equal(report.rank, 2, report.message);
      assert.match(report.message, /rank 2 \(worker w2 at 127\.0\.0\.1:\d+\)/);
    }
    const again = { generation: generationOf(2, survivors, 4), numElements: 1000, numSteps: 1 };
    const [left, right] = await reduceOn(survivors, again);
    assert.ok('hashes' in left!);
    assert.deepEqual(left, right);
  });
});
