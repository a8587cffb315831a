/**
 * Fuzzes a run that trains: `npm run fuzz:rpc -- --seed 1 --messages 10000`. Two workers train in plain text on the
 * loopback; their coordinator's and their own gRPC ports and tensor ports get that many broken messages each. Prints
 * what was sent and fails unless nobody died, nobody grew and the final weights are those of an undisturbed run.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { reachStep, readSummary, startVideoloom, videoloom } from '../command.ts';
import { childrenOf } from '../children.ts';
import { fuzzRun, residentMebibytes } from './fuzz-run.ts';

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    messages: { type: 'string', default: '10000' },
    steps: { type: 'string', default: '4000' },
  },
});
const [seed, messages] = [Number(values.seed), Number(values.messages)];
/** Beyond what buffers of 64 MiB a connection and a garbage collector that has not come round yet explain. */
const MOST_GROWTH_MEBIBYTES = 256;

const train = (out: string, workers: number): string[] => [
  ...['train', 'videobert', '--preset', 'tiny', '--steps', values.steps, '--out', out],
  ...['--workers', String(workers), 'checkpoint.everySteps=1000'],
  ...['data.demoTrainClips=24', 'data.demoHeldOutClips=8'],
];

const work = await temporaryFolder('work');
const run = join(work, 'fuzzed');
const started = startVideoloom(train('fuzzed', 2), { cwd: work });
await reachStep(run, 2, started);
const { address } = JSON.parse(await readFile(join(run, 'coordinator.json'), 'utf8')) as {
  address: string;
};
const { runId } = JSON.parse(await readFile(join(run, 'run.json'), 'utf8')) as { runId: string };
const processes = await childrenOf(started.child.pid!);
const before = await Promise.all(processes.map(({ pid }) => residentMebibytes(pid)));
const startMs = performance.now();
const report = await fuzzRun({ coordinatorAddress: address, runId, seed, messages });
const seconds = Math.round((performance.now() - startMs) / 1000);
const after = await Promise.all(processes.map(({ pid }) => residentMebibytes(pid)));
console.log(JSON.stringify({ seed, seconds, ...report, before, after }));
for (const [i, mebibytes] of after.entries()) {
  assert.ok(mebibytes > 0, `process ${processes[i]!.pid} lives: else --steps is too small`);
  assert.ok(mebibytes - before[i]! < MOST_GROWTH_MEBIBYTES, `process ${processes[i]!.pid} grew`);
}
const { code, output } = await started.ended;
assert.equal(code, 0, output);
const journal = await readFile(join(run, 'journal.jsonl'), 'utf8');
const numLost = (journal.match(/"type":"worker-lost","workerId":"worker-/g) ?? []).length;
console.log(
  `workers that the coordinator took for lost, on a busy machine from slowness: ${numLost}`,
);
const undisturbed = await videoloom(train('undisturbed', 1), { cwd: work });
assert.equal(undisturbed.code, 0, undisturbed.output);
const [a, b] = await Promise.all([run, join(work, 'undisturbed')].map(readSummary));
assert.equal(a!.weightsSha256, b!.weightsSha256);
console.log(`the same weights as undisturbed: ${a!.weightsSha256}`);
