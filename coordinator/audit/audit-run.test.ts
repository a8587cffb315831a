import assert from 'node:assert/strict';
import { appendFile, cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';

import { openRng } from '../../proto/random.ts';
import { plainStepOrder } from '../../proto/step-order.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { decodeRecord, encodeRecord, type JournalRecord } from '../journal.ts';
import { startCoordinator } from '../test/coordinator-process.ts';
import { expectedDigest, newTrainee, trainToTheEnd } from '../test/scripted-training.ts';
import { testPlan } from '../test/scripted-worker.ts';
import { auditCheckpoints } from './audit-checkpoints.ts';
import { auditRun, type RunAudit } from './audit-run.ts';
import { collectFindings } from './findings.ts';
import { newPlayedRun, playEvent } from './play-journal.ts';

const SEED = 20261128;
const PLAN = testPlan({ totalSteps: 30, checkpointEverySteps: 10, keepCheckpoints: 2 });
const PER_STEP = PLAN.microbatches * PLAN.microbatchSize;
const FINAL = join('checkpoints', 'step-00000030');

const audit = (folder: string): Promise<RunAudit> =>
  auditRun(folder, { weightsDigest: (path) => readFile(join(path, 'model-0'), 'utf8') });
const codes = ({ problems }: RunAudit): string[] =>
  [...new Set(problems.map(({ code }) => code))].sort();

/** A run of a real coordinator that was killed in the middle and went on from a checkpoint. */
let original: string;

before(async () => {
  original = await temporaryFolder('audit');
  await writeFile(join(original, 'run.json'), JSON.stringify(PLAN));
  const options = { peers: [], stepMs: 2 };
  let coordinator = await startCoordinator(original);
  const trainee = newTrainee('a');
  const over = new AbortController();
  const training = trainToTheEnd(coordinator.address, original, PLAN, trainee, {
    ...options,
    signal: over.signal,
  }).catch(() => undefined);
  while (trainee.weights.step < 14) await new Promise((resolve) => setTimeout(resolve, 5));
  over.abort();
  await training;
  coordinator.child.kill('SIGKILL');
  await coordinator.exited;
  coordinator = await startCoordinator(original);
  const signal = AbortSignal.timeout(60_000);
  await trainToTheEnd(coordinator.address, original, PLAN, newTrainee('b'), { ...options, signal });
  assert.equal(await coordinator.exited, 0, coordinator.stderr());
});

async function copy(): Promise<string> {
  const folder = await temporaryFolder('audit');
  await cp(original, folder, { recursive: true });
  return folder;
}

const journalOf = (folder: string): string => join(folder, 'journal.jsonl');

async function readLines(folder: string): Promise<string[]> {
  return (await readFile(journalOf(folder), 'utf8')).split('\n').filter((line) => line !== '');
}

async function changeLines(folder: string, change: (lines: string[]) => string[]): Promise<void> {
  const lines = change(await readLines(folder));
  await writeFile(journalOf(folder), lines.map((line) => `${line}\n`).join(''));
}

/** Changes records as somebody would who knows the format: numbers and checksums are right again. */
async function forge(
  folder: string,
  change: (records: JournalRecord[]) => JournalRecord[],
): Promise<void> {
  await changeLines(folder, (lines) =>
    change(lines.map((line) => decodeRecord(line)!)).map((record, i) =>
      encodeRecord({ ...record, seq: i + 1 }).trimEnd(),
    ),
  );
}

const isCommitOf =
  (step: number) =>
  (record: JournalRecord): boolean =>
    record.type === 'commit' && record.step === step;
const lastCommitOf = (records: readonly JournalRecord[], step: number): number =>
  records.findLastIndex(isCommitOf(step));

/** The samples of a step, as the plan orders them. */
function samplesOf(step: number): number[] {
  const order = plainStepOrder(PLAN);
  return Array.from({ length: PLAN.microbatches }, (_, m) => order.placesOf(step, m)).flatMap(
    (places) => places.map(({ sample }) => sample),
  );
}

describe('an audit', () => {
  it('finds nothing wrong with a run that was killed and went on from a checkpoint', async () => {
    const found = await audit(original);
    assert.deepEqual(found.problems, []);
    assert.ok(found.isFaultless && !found.isLive);
    assert.equal(found.committedStep, 30);
    assert.ok(found.numRedone >= 4, 'the steps after the checkpoint of step 10 are done again');
    assert.equal(found.samples.numPlaces, 30 * PER_STEP);
    assert.equal(found.samples.completeEpochs, Math.floor((30 * PER_STEP) / 37));
    assert.deepEqual(
      found.checkpoints.map(({ step, isWhole }) => [step, isWhole]),
      [
        [20, true],
        [30, true],
      ],
    );
    assert.deepEqual(found.weights, { reported: expectedDigest(PLAN), kept: expectedDigest(PLAN) });
  });

  it('names the samples of a commit that is gone from the journal, also when the numbers were mended', async () => {
    for (const isForged of [false, true]) {
      const folder = await copy();
      if (isForged)
        await forge(folder, (records) => records.toSpliced(lastCommitOf(records, 17), 1));
      else
        await changeLines(folder, (lines) =>
          lines.toSpliced(
            lastCommitOf(
              lines.map((line) => decodeRecord(line)!),
              17,
            ),
            1,
          ),
        );
      const found = await audit(folder);
      const expected = ['COMMIT_MISSING', 'SAMPLE_LOST'];
      assert.deepEqual(
        codes(found),
        isForged ? expected : [...expected.slice(0, 1), 'JOURNAL_RECORD_MISSING', 'SAMPLE_LOST'],
      );
      assert.deepEqual(
        found.samples.lost.map(({ sample }) => sample),
        samplesOf(17),
      );
      assert.deepEqual(found.samples.doubled, []);
    }
  });

  it('names the samples of a commit that stands in the journal twice, also when the numbers were mended', async () => {
    for (const isForged of [false, true]) {
      const folder = await copy();
      const double = <T>(lines: T[], at: number): T[] => lines.toSpliced(at, 0, lines[at]!);
      if (isForged) await forge(folder, (records) => double(records, lastCommitOf(records, 23)));
      else
        await changeLines(folder, (lines) =>
          double(
            lines,
            lastCommitOf(
              lines.map((line) => decodeRecord(line)!),
              23,
            ),
          ),
        );
      const found = await audit(folder);
      assert.deepEqual(codes(found), [
        'COMMIT_DOUBLED',
        ...(isForged ? [] : ['JOURNAL_RECORD_DOUBLED']),
        'SAMPLE_DOUBLED',
      ]);
      assert.deepEqual(
        found.samples.doubled.map(({ sample }) => sample),
        samplesOf(23),
      );
    }
  });

  it('names what a commit with a wrong range lost and doubled', async () => {
    const folder = await copy();
    await forge(folder, (records) =>
      records.with(lastCommitOf(records, 21), {
        ...(records[lastCommitOf(records, 21)] as JournalRecord & { type: 'commit' }),
        firstPosition: 20 * PER_STEP + 3,
      }),
    );
    const found = await audit(folder);
    assert.deepEqual(codes(found), ['COMMIT_WRONG_RANGE', 'SAMPLE_DOUBLED', 'SAMPLE_LOST']);
    assert.deepEqual(
      found.samples.lost.map(({ sample }) => sample),
      samplesOf(21).slice(0, 3),
    );
    assert.deepEqual(
      found.samples.doubled.map(({ sample }) => sample),
      samplesOf(22).slice(0, 3),
    );
  });

  it('sees any bit that is flipped in a checkpoint or in the journal', async () => {
    const rng = openRng(SEED, 'flips');
    const folder = await copy();
    for (const name of [join(FINAL, 'model-0'), join(FINAL, 'manifest.json'), 'journal.jsonl']) {
      const path = join(folder, name);
      const whole = await readFile(path);
      for (let i = 0; i < 12; i++) {
        const bent = Buffer.from(whole);
        // Not the blanks and the time of a manifest: they mean nothing.
        const end = name.endsWith('manifest.json') ? whole.indexOf('"time"') - 8 : whole.length;
        let bit = rng.integer(8 * end);
        while (/\s/.test(String.fromCharCode(whole[bit >> 3]!))) bit = rng.integer(8 * end);
        bent[bit >> 3]! ^= 1 << (bit & 7);
        await writeFile(path, bent);
        const found = await audit(folder);
        assert.ok(!found.isFaultless, `seed ${SEED}: bit ${bit} of ${name} is flipped`);
        if (name !== 'journal.jsonl')
          assert.ok(
            found.problems.every(({ step }) => step === 30),
            JSON.stringify(found.problems),
          );
      }
      await writeFile(path, whole);
    }
    assert.ok((await audit(folder)).isFaultless);
  });

  it('sees checkpoints and results that are gone, swapped or of somebody else', async () => {
    const folder = await copy();
    const path = join(folder, FINAL);
    await rm(path, { recursive: true });
    assert.deepEqual(codes(await audit(folder)), ['CHECKPOINT_MISSING', 'RESULT_NOT_KEPT']);
    await cp(join(folder, 'checkpoints', 'step-00000020'), path, { recursive: true });
    assert.deepEqual(codes(await audit(folder)), ['CHECKPOINT_DAMAGED', 'RESULT_NOT_KEPT']);
    await rm(path, { recursive: true });
    await cp(join(original, FINAL), path, { recursive: true });
    await writeFile(
      join(folder, 'summary.json'),
      JSON.stringify({ weightsSha256: 'f'.repeat(64) }),
    );
    assert.deepEqual(codes(await audit(folder)), ['RESULT_DIFFERS']);
    const other = { ...testPlan(), ...PLAN, seed: 8 };
    await writeFile(join(folder, 'run.json'), JSON.stringify(other));
    const swapped = await audit(folder);
    assert.deepEqual(codes(swapped), [
      'CHECKPOINT_OF_ANOTHER_RUN',
      'PLAN_CHANGED',
      'RESULT_DIFFERS',
    ]);
  });

  it('lists substitutes, and names those that the order does not offer', async () => {
    const folder = await copy();
    const order = plainStepOrder(PLAN);
    const place = order.placesOf(25, 1)[1]!;
    const skip = {
      ...{ sample: place.sample, substitute: place.substitutes(4)[2]!, place: 3 },
      ...{ reason: 'DECODE_FAILED', message: 'torn' },
    };
    const withSkips = (skipped: readonly (typeof skip)[]): Promise<void> =>
      forge(folder, (records) =>
        records.map((record) =>
          record.type === 'commit' && record.step === 25 ? { ...record, skipped } : record,
        ),
      );
    await withSkips([skip]);
    const found = await audit(folder);
    assert.deepEqual(codes(found), []);
    assert.deepEqual(
      found.samples.substitutes.map(({ step, sample, substitute }) => [step, sample, substitute]),
      [[25, skip.sample, skip.substitute]],
    );
    for (const wrong of [
      { ...skip, substitute: skip.sample },
      { ...skip, sample: order.placesOf(25, 1)[0]!.sample },
      { ...skip, place: PER_STEP },
    ]) {
      await withSkips([wrong]);
      assert.deepEqual(codes(await audit(folder)), ['SUBSTITUTE_WRONG']);
    }
  });

  it('sees steps that came out differently when they were done again', async () => {
    const folder = await copy();
    await forge(folder, (records) => {
      const at = records.findIndex(isCommitOf(12));
      const first = records[at] as JournalRecord & { type: 'commit' };
      return records.with(at, { ...first, gradientNorm: first.gradientNorm + 1 });
    });
    assert.deepEqual(codes(await audit(folder)), ['COMMIT_REDONE_DIFFERENTLY']);
  });

  it('takes half a record at the end for what it is, and a journal without its end for a loss', async () => {
    const folder = await copy();
    await appendFile(journalOf(folder), '{"seq":99,"ty');
    const torn = await audit(folder);
    assert.deepEqual(torn.problems, []);
    assert.match(torn.notes.join(), /half a record/);
    // The end is gone: checkpoints and summary know of more than the journal does.
    await changeLines(folder, (lines) => lines.slice(0, -12));
    const cut = await audit(folder);
    assert.ok(cut.committedStep < 30);
    // Of the checkpoint that was pruned in the end it does not know that any more either.
    assert.deepEqual(codes(cut), ['CHECKPOINT_MISSING', 'COMMIT_MISSING', 'RESULT_DIFFERS']);
    await rm(journalOf(folder));
    assert.ok(codes(await audit(folder)).includes('JOURNAL_MISSING'));
  });

  it('takes nothing amiss that a run completes while it is read', async () => {
    const folder = await copy();
    const played = newPlayedRun();
    const findings = collectFindings();
    const journaled = (await readLines(folder)).map((line) => decodeRecord(line)!);
    // What the journal said at the moment when the audit read it: step 30 and the checkpoint of step 20 came later.
    const end = lastCommitOf(journaled, 20) + 1;
    for (const record of journaled.slice(0, end)) playEvent(played, record, findings);
    played.checkpoints.delete(10);
    const listed = { names: ['step-00000020'], complete: new Set(['step-00000020']) };
    const meanwhile = { pruned: () => false, completed: (step: number) => step === 20 };
    const place = { listed, meanwhile };
    const found = await auditCheckpoints(folder, played, PLAN, findings, place);
    assert.deepEqual(
      found.map(({ step }) => step),
      [20],
    );
    assert.deepEqual(findings.problems, []);
    assert.deepEqual(findings.notes, []);
  });
});
