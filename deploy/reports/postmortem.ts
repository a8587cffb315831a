import { hostname } from 'node:os';
import { join } from 'node:path';
import pc from 'picocolors';
import { JOURNAL_FILE, readJournal, type JournalRecord } from '../../coordinator/journal.ts';
import { UsageError } from '../../proto/errors.ts';
import { printable } from '../../proto/printable.ts';
import { lookUpProcess } from '../../proto/process-look.ts';
import { readRunPlan } from '../../proto/run-plan.ts';
import { readBlackBoxes } from '../../worker/black-box/read.ts';
import type { BoxOwner } from '../../worker/black-box/record.ts';
import { examine, type Divergence, type Postmortem, type Story } from './postmortem-findings.ts';

/**
 * Merges the black boxes of a run's workers with its journal and prints who stopped or diverged first. Gives the exit
 * code: 1 when somebody did.
 * @throws UsageError RUN_PLAN_MISSING, RUN_PLAN_INVALID, NO_BLACK_BOX
 */
export async function showPostmortem(run: string, { json }: { json?: boolean }): Promise<number> {
  const { runId, ...findings } = await examineRun(run);
  process.stdout.write(
    json === true
      ? `${JSON.stringify({ runId, ...findings }, undefined, 2)}\n`
      : textOf(runId, findings),
  );
  return findings.firstStopped === undefined && findings.divergence === undefined ? 0 : 1;
}

/** What boxes and journal of a run folder say. @throws as {@link showPostmortem} */
export async function examineRun(run: string): Promise<Postmortem & { readonly runId: string }> {
  const { runId } = await readRunPlan(run);
  const boxes = (await readBlackBoxes(run)).filter(({ owner }) => owner.runId === runId);
  if (boxes.length === 0) {
    throw new UsageError(
      'NO_BLACK_BOX',
      `no worker has left a black box in ${run}: none has started yet, or they ran on hosts with folders of their own.`,
    );
  }
  const journal: JournalRecord[] = [];
  readJournal(join(run, JOURNAL_FILE), (record) => journal.push(record));
  return { runId, ...examine({ boxes, journal, stateOf }) };
}

function stateOf({ host, pid, processStart }: BoxOwner): string | undefined {
  if (host !== hostname()) return 'unknown';
  const look = lookUpProcess(pid);
  return look?.startedAt === processStart ? look.state : undefined;
}

const FATES = {
  running: 'running',
  paused: 'stopped by a signal, could go on',
  finished: 'finished',
  failed: 'ended with an error',
  gone: 'killed: it ended without a word',
} as const;

function textOf(
  runId: string,
  { stories, firstStopped, divergence, isFinished, timeline }: Postmortem,
): string {
  const lines = [`run ${runId}${isFinished ? ': finished' : ''}`];
  for (const story of stories) {
    const { owner, fate, exitCode, heldStep, isReplaced } = story;
    lines.push(
      `  ${owner.workerId.padEnd(12)} process ${owner.pid}: ${FATES[fate]}${exitCode === undefined ? '' : ` (${exitCode})`}, ` +
        `held step ${heldStep}${isReplaced ? '; replaced since' : ''}`,
    );
  }
  lines.push('timeline:');
  for (const { timeMs, who, what } of timeline) lines.push(`  ${clock(timeMs)}  ${who}: ${what}`);
  lines.push('');
  if (divergence !== undefined) lines.push(...divergenceLines(divergence));
  if (firstStopped !== undefined) lines.push(...stopLines(firstStopped));
  else if (divergence === undefined)
    lines.push(`${pc.green('✓')} nobody diverged${isFinished ? '' : ', nobody has stopped'}`);
  return lines.map((line) => `${line.startsWith('  ') ? printable(line) : line}\n`).join('');
}

function stopLines(story: Story): string[] {
  const { owner, fate, phase, phaseSinceMs, lastMs, collective, loss } = story;
  const verb = fate === 'running' ? 'stands still' : 'stopped first';
  const lines = [
    pc.red(`✗ ${owner.workerId} ${verb}`) +
      `: process ${owner.pid} on ${owner.host}, ${FATES[fate]}; last sign of life ${clock(lastMs)}`,
    `  phase ${phase} since ${clock(phaseSinceMs)}, ${seconds(lastMs - phaseSinceMs)} before its last sign`,
  ];
  if (collective !== undefined) {
    const { name, step, sinceMs, waitsFor } = collective;
    const whom = waitsFor.length === 0 ? '' : `, waiting for ${waitsFor.join(', ')}`;
    lines.push(`  in "${name}" of step ${step} since ${clock(sinceMs)}${whom}`);
  }
  if (loss !== undefined)
    lines.push(
      `  the coordinator took it for lost (${loss.reason}) ${seconds(loss.timeMs - lastMs)} after its last sign`,
    );
  return lines;
}

function divergenceLines({ kind, step, sides, suspects, lastEqualStep }: Divergence): string[] {
  const what =
    kind === 'gradient' ? `the reduced gradient of step ${step}` : `the weights after step ${step}`;
  const before = lastEqualStep === 0 ? '' : `; at step ${lastEqualStep} they were equal`;
  return [
    suspects === undefined
      ? pc.red(`✗ the workers diverged`) +
        `: ${what} differ, and no side is in the majority${before}`
      : pc.red(`✗ ${suspects.join(', ')} diverged first`) + `: ${what}${before}`,
    ...sides.map(
      ({ digest, workers }) => `  ${digest.toString(16).padStart(8, '0')}  ${workers.join(', ')}`,
    ),
  ];
}

function clock(ms: number): string {
  return new Date(ms).toISOString().slice(11, 23);
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}
