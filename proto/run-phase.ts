import { RunPhase } from './gen/videoloom/v1/run.ts';

/** Whether nothing more will happen to the run. */
export function isOver({ phase }: { readonly phase: RunPhase }): boolean {
  return phase === RunPhase.FINISHED || phase === RunPhase.FAILED || phase === RunPhase.STOPPED;
}
