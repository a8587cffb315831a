/**
 * The thread that attends: it sends a worker's beats and hears of generations, also while the thread that trains is
 * busy with a compilation or a copy of gigabytes. What it tells of that one it reads in the ledger's cells; a process
 * that is stopped stops both.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { VideoloomError } from '../proto/errors.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { AttendRequest } from '../proto/gen/videoloom/v1/coordinator.ts';
import { callBidi, dial } from '../proto/grpc.ts';
import type { AttendanceCommand, AttendanceEvent, AttendanceSetting } from './attendance.ts';
import { Line } from '../proto/line.ts';
import { LedgerCells } from './ledger-cells.ts';

const { coordinatorAddress, security, keepalive, buffer } = workerData as AttendanceSetting;
const cells = new LedgerCells(buffer);
const line = new Line(() =>
  dial(coordinatorAddress, { security, peer: { role: 'coordinator' }, keepalive }),
);
const port = parentPort!;

/** The stream under way. */
let current:
  { readonly cut: AbortController; readonly wake: () => void; isLast: boolean } | undefined;

port.on('message', (command: AttendanceCommand) => {
  switch (command.type) {
    case 'attend':
      void attend(command.session, command.beatMs);
      return;
    case 'beat':
      current?.wake();
      return;
    case 'finish':
      if (current === undefined) return;
      current.isLast = true;
      current.wake();
      return;
    case 'cut':
      current?.cut.abort();
      return;
  }
});

tell({ type: 'ready' });

async function attend(session: string, beatMs: number): Promise<void> {
  current?.cut.abort();
  const cut = new AbortController();
  let nap = new AbortController();
  const own = {
    cut,
    wake: () => {
      nap.abort();
    },
    isLast: false,
  };
  current = own;
  async function* beats(): AsyncGenerator<AttendRequest> {
    while (!cut.signal.aborted) {
      nap = new AbortController();
      const { isLast } = own;
      yield beatOf(session);
      if (isLast) return;
      if (own.isLast) continue;
      const signal = AbortSignal.any([nap.signal, cut.signal]);
      await delay(beatMs, undefined, { signal }).catch(() => undefined);
    }
  }
  let ended: AttendanceEvent = { type: 'ended', session };
  const { channel, signal, end } = line.attempt(cut.signal);
  try {
    for await (const { generation, released } of callBidi(channel, Rpc.attend, beats(), {
      timeoutMs: Infinity,
      signal,
    })) {
      if (generation !== undefined) tell({ type: 'generation', generation });
      if (released) tell({ type: 'released' });
    }
  } catch (error) {
    const { message } = error as Error;
    const { code, retryable } =
      error instanceof VideoloomError ? error : { code: 'ATTENDANCE_CUT', retryable: true };
    ended = { ...ended, failure: { code, message, retryable } };
  } finally {
    end();
    cut.abort();
    if (current === own) current = undefined;
  }
  tell(ended);
}

function beatOf(session: string): AttendRequest {
  const { phase, progress, stillMs, phaseMs, isLeaving, settled, step, ...held } = cells.pulse();
  const { user, system } = process.cpuUsage();
  return {
    ...{ session, phase, progress, stillMs, phaseMs },
    ...{ step: held.heldStep, stateIn: held.heldIn },
    cpuMs: Math.round((user + system) / 1000),
    leaving: isLeaving,
    time: settled,
    stepTime: step,
  };
}

function tell(event: AttendanceEvent): void {
  port.postMessage(event);
}
