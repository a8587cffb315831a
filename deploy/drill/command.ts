import { UsageError } from '../../proto/errors.ts';
import { drill, DRILL_FAULTS, type DrillFault } from './drill.ts';

/** Options of `videoloom drill`, as the command line gives them. */
export interface DrillFlags {
  readonly out?: string | undefined;
  readonly against?: string;
  readonly killWorker?: boolean;
  readonly pauseWorker?: boolean;
  readonly killCoordinator?: boolean;
  readonly join?: boolean;
  readonly preempt?: string | boolean;
  readonly corrupt?: string | boolean;
  readonly fullDisk?: boolean;
  readonly dropNetwork?: boolean;
  readonly seed: string;
  readonly json?: boolean;
}

/** `videoloom drill`. @throws UsageError BAD_FLAG and those of {@link drill} */
export function drillCommand(
  prepareArgs: readonly string[],
  flags: DrillFlags & { out: string; hasSteps: boolean; env: NodeJS.ProcessEnv },
): Promise<number> {
  const isAsked = (fault: DrillFault): boolean => {
    const name = fault.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
    return (flags as unknown as Record<string, unknown>)[name] !== undefined;
  };
  const seed = Number(flags.seed);
  if (!Number.isInteger(seed) || seed < 0)
    throw new UsageError('BAD_FLAG', `--seed is ${flags.seed}: give a whole number`);
  return drill({
    ...{ prepareArgs, seed, hasSteps: flags.hasSteps, out: flags.out, against: flags.against },
    faults: DRILL_FAULTS.filter(isAsked),
    graceSeconds: secondsOf(flags.preempt),
    corruptShare: shareOf(flags.corrupt),
    json: flags.json === true,
    env: flags.env,
  });
}

function secondsOf(text: string | boolean | undefined): number {
  if (typeof text !== 'string') return 30;
  const match = /^(\d+(?:\.\d+)?)s?$/.exec(text);
  if (match !== null) return Number(match[1]);
  throw new UsageError('BAD_FLAG', `--preempt is ${text}: give seconds, as 30s`);
}

function shareOf(text: string | boolean | undefined): number {
  if (typeof text !== 'string') return 0.01;
  const match = /^(\d+(?:\.\d+)?)(%?)$/.exec(text);
  const share = Number(match?.[1]) / (match?.[2] === '%' ? 100 : 1);
  if (share > 0 && share <= 1) return share;
  throw new UsageError('BAD_FLAG', `--corrupt is ${text}: give a share, as 1%`);
}
