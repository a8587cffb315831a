import type { TimeLedger } from './gen/videoloom/v1/run.ts';

/** No time at all. */
export const NO_TIME: TimeLedger = {
  decodeSeconds: 0,
  waitSeconds: 0,
  computeSeconds: 0,
  reduceSeconds: 0,
  checkpointSeconds: 0,
  evaluateSeconds: 0,
  setupSeconds: 0,
  wallSeconds: 0,
};
