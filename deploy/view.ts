import pc from 'picocolors';
import { RunPhase, type RunStatus, type TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { bar, formatDuration, type ProgressTarget } from '../proto/progress.ts';
import { ACTIVITIES, goodputOf, secondsOf, waitsByRank } from '../proto/time-ledger.ts';

/** Draws a run's progress: one line that is redrawn on a terminal, one plain line every few seconds elsewhere. */
export interface RunView {
  show(status: RunStatus): void;
  /** A message above the progress line. */
  note(text: string): void;
  end(): void;
}

export function openRunView(
  target: ProgressTarget = process.stderr,
  now: () => number = () => performance.now(),
): RunView {
  const isTTY = target.isTTY === true;
  let lastMs = -Infinity;
  let lastStep = -1;
  let drawn = '';
  const clear = (): void => {
    if (isTTY && drawn !== '') target.write('\r\x1b[2K');
  };
  return {
    show(status) {
      if (status.committedStep === lastStep && status.phase === RunPhase.TRAINING) return;
      const isLast =
        status.committedStep === status.totalSteps && lastStep !== status.committedStep;
      if (!isLast && now() - lastMs < (isTTY ? 100 : 5000)) return;
      lastMs = now();
      lastStep = status.committedStep;
      drawn = stepLine(status, isTTY);
      if (isTTY) target.write(`\r\x1b[2K${drawn.slice(0, (target.columns ?? 160) - 1)}`);
      else target.write(`${drawn}\n`);
    },
    note(text) {
      clear();
      target.write(`${text}\n`);
      if (isTTY) target.write(drawn);
    },
    end() {
      if (isTTY && drawn !== '') target.write('\n');
      drawn = '';
    },
  };
}

function stepLine(status: RunStatus, isTTY: boolean): string {
  const { committedStep, totalSteps, phase, generation } = status;
  if (phase === RunPhase.WAITING) return 'waiting for workers';
  const members = generation?.members.length ?? 0;
  const left =
    status.clipsPerSecond > 0
      ? ((totalSteps - committedStep) * status.clipsPerStep) / status.clipsPerSecond
      : Infinity;
  // A stage may ask nothing of an objective.
  const losses = status.objectives
    .filter(({ count }) => count > 0)
    .map(({ name, lossSum, count }) => `${name} ${(lossSum / count).toFixed(2)}`);
  const parts = [
    `step ${committedStep}/${totalSteps}`,
    isTTY ? `${bar(committedStep / totalSteps, 16)}|` : '',
    `left ${formatDuration(left)}`,
    losses.join('  '),
    `${status.clipsPerSecond.toFixed(0)} clips/s`,
    `${Math.round(status.tokensPerSecond)} tokens/s`,
    `${members} worker${members === 1 ? '' : 's'}`,
    status.skippedSamples > 0 ? pc.yellow(`${status.skippedSamples} skipped`) : '',
    phase === RunPhase.EVALUATING ? 'evaluating' : '',
  ];
  return parts.filter((part) => part !== '').join('  ');
}

/** What is left of a run when it is over: a status, or the `summary.json` of its folder. */
export type Outcome = Pick<RunStatus, 'figures' | 'weightsSha256' | 'skippedSamples'> &
  Partial<Pick<RunStatus, 'time' | 'generation'>>;

/** Held-out figures and where the time went. */
export function summary(status: Outcome, { folder }: { folder: string }): string {
  const lines: string[] = [];
  if (status.figures.length > 0) {
    const width = Math.max(...status.figures.map(({ name }) => name.length), 'held-out'.length);
    lines.push(pc.bold(`${'held-out'.padEnd(width)}   trained  untrained  chance       n`));
    for (const { name, value, untrained, chance, count } of status.figures) {
      const columns = [value, untrained, chance].map((x) => x.toFixed(3));
      lines.push(
        `${name.padEnd(width)}   ${columns[0]!.padStart(7)}  ${columns[1]!.padStart(9)}  ${columns[2]!.padStart(6)}  ${String(count).padStart(6)}`,
      );
    }
    lines.push('');
  }
  if (status.time !== undefined && status.time.wallSeconds > 0) {
    lines.push(timeLine(status.time, status.generation?.members.length ?? 1), '');
  }
  if (status.weightsSha256 !== '') lines.push(`weights SHA-256 ${status.weightsSha256}`);
  if (status.skippedSamples > 0) {
    lines.push(
      `${status.skippedSamples} samples could not be decoded and were replaced: see ${folder}/logs`,
    );
  }
  return lines.join('\n');
}

/** Shares of the summed wall clock of all worker processes, and for whom they waited. */
function timeLine(time: TimeLedger, workers: number): string {
  const sum = ACTIVITIES.reduce((total, name) => total + secondsOf(time, name), 0);
  const share = (seconds: number): string => `${((100 * seconds) / sum).toFixed(1)} %`;
  const shares = ACTIVITIES.map((name) => `${name} ${share(secondsOf(time, name))}`);
  const perWorker = sum / workers;
  // Of the processes' own clocks: those of a run that was resumed are older than this command.
  const against = `, ${((100 * sum) / time.wallSeconds).toFixed(1)} % of the clock on the wall`;
  const waits = waitsByRank(time)
    .filter(([, seconds]) => seconds > 0.001 * sum)
    .sort(([, a], [, b]) => b - a)
    .slice(0, MOST_RANKS)
    .map(([rank, seconds]) => `rank ${rank} ${share(seconds)}`);
  return [
    `where the time went (${formatDuration(perWorker)} a worker${against}; goodput ${share(goodputOf(time) * sum)}):`,
    `  ${shares.join('  ')}`,
    ...(waits.length === 0 ? [] : [`  waited for ${waits.join('  ')}`]),
  ].join('\n');
}

/** Ranks that are named as those that kept the others waiting. */
const MOST_RANKS = 4;
