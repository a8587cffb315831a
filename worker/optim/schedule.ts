export interface ScheduleConfig {
  readonly learningRate: number;
  readonly warmupSteps: number;
  /** Share of the peak that is left at the last step, 0..1. */
  readonly finalFraction: number;
}

/**
 * Learning rate of a step (counted from 1): linear warm-up, then a half cosine down to `finalFraction` of the peak at
 * `totalSteps`. Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
 */
export function learningRateAt(config: ScheduleConfig, step: number, totalSteps: number): number {
  const { learningRate, warmupSteps, finalFraction } = config;
  if (step <= warmupSteps) return (learningRate * step) / Math.max(1, warmupSteps);
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
  return (
    learningRate * (finalFraction + (1 - finalFraction) * 0.5 * (1 + Math.cos(Math.PI * progress)))
  );
}
