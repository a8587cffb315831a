import pc from 'picocolors';
import type { RunPlan } from '../../proto/run-plan.ts';
import type { Left } from './drill.ts';
import type { FaultReport } from './observe.ts';
import type { LedgerOutcome, RunOutcome } from './running.ts';

/** What a drill found, also its JSON. */
export interface DrillReport {
  readonly folder: string;
  readonly seed: number;
  readonly steps: number;
  readonly workers: number;
  readonly detectWithinMs: number;
  readonly faults: readonly FaultReport[];
  /** Asked for and not injected. */
  readonly left: readonly Left[];
  /** Media files that were damaged before both runs. */
  readonly damaged: readonly string[];
  readonly weights: { readonly areEqual: boolean; readonly expected: string; readonly got: string };
  readonly ledger: LedgerOutcome;
  readonly leftovers: RunOutcome['leftovers'];
  readonly seconds: { readonly undisturbed: number | undefined; readonly disturbed: number };
  /** Each promise that broke; empty when the drill is passed. */
  readonly problems: readonly string[];
  readonly passed: boolean;
}

export interface DrillFindings {
  readonly seed: number;
  readonly folder: string;
  readonly plan: RunPlan;
  readonly workers: number;
  readonly reports: readonly FaultReport[];
  readonly left: readonly Left[];
  readonly damaged: readonly string[];
  readonly expected: { readonly weightsSha256: string; readonly substituted: number | undefined };
  readonly undisturbed: RunOutcome | undefined;
  readonly outcome: RunOutcome;
}

/** Found by silence, not by a closed connection: these have the time that `detectWithin` gives. */
const SILENT: ReadonlySet<string> = new Set(['pause-worker', 'drop-network']);

export function drillReport(findings: DrillFindings): DrillReport {
  const { plan, reports, expected, undisturbed, outcome, left } = findings;
  const areEqual = outcome.weightsSha256 !== '' && outcome.weightsSha256 === expected.weightsSha256;
  const problems = [
    ...(undisturbed?.failure === undefined
      ? []
      : [`the undisturbed run failed: ${undisturbed.failure}`]),
    ...(outcome.failure === undefined ? [] : [`the disturbed run failed: ${outcome.failure}`]),
    ...(areEqual ? [] : ['the final weights differ']),
    ...outcome.ledger.problems,
    ...outcome.leftovers.processes.map((process) => `left a process: ${process}`),
    ...outcome.leftovers.files.map((file) => `left a temporary file: ${file}`),
    ...(expected.substituted === undefined || expected.substituted === outcome.ledger.numSubstituted
      ? []
      : [
          `${outcome.ledger.numSubstituted} samples substituted, ${expected.substituted} in the undisturbed run`,
        ]),
    ...reports.flatMap((report) => problemsOf(report, plan)),
  ];
  return {
    ...{ folder: findings.folder, seed: findings.seed },
    ...{ steps: plan.totalSteps, workers: findings.workers, detectWithinMs: plan.detectWithinMs },
    ...{ faults: reports, left, damaged: findings.damaged },
    weights: { areEqual, expected: expected.weightsSha256, got: outcome.weightsSha256 },
    ledger: outcome.ledger,
    leftovers: outcome.leftovers,
    seconds: { undisturbed: undisturbed?.seconds, disturbed: outcome.seconds },
    problems,
    passed: problems.length === 0,
  };
}

function problemsOf(report: FaultReport, { detectWithinMs }: RunPlan): string[] {
  const { kind, victim, step, detectedMs, resumedMs } = report;
  const what = `${kind} of ${victim} after step ${step}`;
  if (detectedMs === undefined) return [`${what} was never noticed`];
  if (resumedMs === undefined) return [`${what}: no step was committed afterwards`];
  if (SILENT.has(kind) && detectedMs > detectWithinMs)
    return [`${what} was noticed after ${detectedMs} ms, detectWithin is ${detectWithinMs} ms`];
  return [];
}

/** A drill's report as people read it. */
export function reportText(report: DrillReport): string {
  const { faults, left, ledger, weights, leftovers, seconds, problems } = report;
  const cells = [
    ['fault', 'hit', 'after step', 'noticed', 'training again', 'whole again', 'steps redone'],
    ...faults.map(({ kind, victim, step, detectedMs, resumedMs, wholeMs, stepsRedone }) => [
      ...[kind, victim, String(step), time(detectedMs), time(resumedMs), time(wholeMs)],
      String(stepsRedone),
    ]),
  ];
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  const table = cells.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
  const { numSamples, numLost, numDoubled, numSubstituted, numRedone } = ledger;
  const { processes, files } = leftovers;
  return [
    '',
    ...(faults.length === 0 ? [] : [pc.bold(table[0]), ...table.slice(1), '']),
    ...left.map(({ kind, why }) => `${pc.yellow(`${kind} not done`)}: ${why}`),
    ...(report.damaged.length === 0
      ? []
      : [`damaged   ${report.damaged.length} media files, ${numSubstituted} samples substituted`]),
    `ledger    ${numSamples} samples used, ${numLost} lost, ${numDoubled} doubled; ${numRedone} committed steps done again`,
    `weights   ${weights.areEqual ? 'equal' : pc.red('DIFFERENT')}: SHA-256 ${weights.got || 'none'}`,
    `left      ${processes.length} processes, ${files.length} temporary files`,
    `time      ${seconds.disturbed.toFixed(1)} s` +
      (seconds.undisturbed === undefined
        ? ''
        : `, undisturbed ${seconds.undisturbed.toFixed(1)} s`),
    ...problems.map((problem) => `${pc.red('✗')} ${problem}`),
    report.passed
      ? `${pc.green('✓')} nothing was lost (seed ${report.seed}, runs in ${report.folder})`
      : `${pc.red('✗')} ${problems.length} of the promises broke (seed ${report.seed}, runs in ${report.folder})`,
  ].join('\n');
}

function time(milliseconds: number | undefined): string {
  if (milliseconds === undefined) return '-';
  return milliseconds < 10_000 ? `${milliseconds} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
