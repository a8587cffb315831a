import { basename, join } from 'node:path';
import { UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { leadRun, type LauncherOptions } from './launcher.ts';
import { runThrough } from './processes.ts';

/** The config that a run folder was prepared with; a whole recipe. */
const CONFIG_FILE = 'config.resolved.yaml';

export interface ResumeOptions {
  readonly overrides: readonly string[];
  readonly out?: string | undefined;
  readonly workers?: string | undefined;
  readonly launcher: Omit<LauncherOptions, 'prepareArgs'>;
}

/**
 * Goes on with a run by what lies in its folder; one out of a store is brought there first. Gives the exit code.
 * @throws UsageError RUN_NOT_FOUND
 */
export async function resumeRun(run: string, options: ResumeOptions): Promise<number> {
  let folder = run;
  if (/^s3:\/\//i.test(run)) {
    folder = options.out ?? join('runs', basename(run));
    if (!(await exists(join(folder, RUN_PLAN_FILE)))) {
      const code = await runThrough('worker', ['fetch', run, '--out', folder]);
      if (code !== 0) return code;
    }
  }
  if (!(await exists(join(folder, RUN_PLAN_FILE)))) {
    throw new UsageError(
      'RUN_NOT_FOUND',
      `${folder} is no run folder: it has no ${RUN_PLAN_FILE}. Of a recipe with stages name the folder of a stage, or ` +
        'give `videoloom train` the recipe again.',
    );
  }
  const { launcher, overrides } = options;
  const { hosts = [] } = launcher;
  const workers = options.workers ?? (hosts.length === 0 ? undefined : hosts.length);
  const set = [...(workers === undefined ? [] : [`cluster.workers=${workers}`]), ...overrides];
  return leadRun({
    prepareArgs: [
      ...[join(folder, CONFIG_FILE), '--out', folder],
      ...set.flatMap((override) => ['--set', override]),
    ],
    ...launcher,
    runFolder: folder,
  });
}
