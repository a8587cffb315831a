import type { SchedulerJob } from './run-lock.ts';

/** The job of Slurm that a process with this environment runs in. */
export function slurmJob({
  SLURM_CLUSTER_NAME: cluster = '',
  SLURM_JOB_ID: job,
  SLURM_RESTART_COUNT: restarts = '0',
}: NodeJS.ProcessEnv): SchedulerJob | undefined {
  return job === undefined ? undefined : { id: `${cluster}/${job}`, restarts: Number(restarts) };
}
