import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test, type TestContext } from 'node:test';
import {
  CoordinatorServiceService,
  type AttendRequest,
  type AttendResponse,
  type CommitStepResponse,
  type JoinRequest,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import type { Generation } from '../proto/gen/videoloom/v1/run.ts';
import { bidi, serve, unary } from '../proto/grpc.ts';
import { openLog } from '../proto/log.ts';
import { PROTOCOL_VERSION } from '../proto/protocol.ts';
import { timeLimits } from '../proto/time-limits.ts';
import { clockMs } from './ledger-cells.ts';
import { openLedger, type Ledger } from './ledger.ts';
import { openSession, type Session } from './session.ts';

const DETECT_WITHIN_MS = 1500;
const limits = timeLimits({ detectWithinMs: DETECT_WITHIN_MS, decodeTimeoutMs: 1000 });
const VOTE = {
  ...{ generation: 1, step: 4, objectives: [], gradientNorm: 1, learningRate: 1e-3 },
  ...{ numClips: 1, numTokens: 1, skipped: [] },
};

const describe = (): Omit<JoinRequest, 'session'> => ({
  ...{ protocolVersion: PROTOCOL_VERSION, runId: 'run', workerId: 'w0', host: 'here' },
  ...{ tensorAddress: 'w0:1', serviceAddress: 'w0:2', metricsAddress: 'w0:3' },
  ...{ engine: 'none', stateStep: 3, stateIn: 1, process: 'p' },
});

/** A coordinator that says what it is told to say: in an order that a real one's connections make now and then. */
interface Script {
  readonly session: Session;
  readonly ledger: Ledger;
  /** Opens the next generation, or lets the worker go. */
  readonly tell: (news: AttendResponse) => void;
  /** Settles with what answers the worker's vote. */
  readonly voted: Promise<(answer: CommitStepResponse) => void>;
}

async function scripted(t: TestContext): Promise<Script> {
  const news: AttendResponse[] = [{ generation: generationOf(1), released: false }];
  let wake = (): void => undefined;
  let takeVote: (answer: (response: CommitStepResponse) => void) => void;
  const voted = new Promise<(answer: CommitStepResponse) => void>((resolve) => {
    takeVote = resolve;
  });
  async function* attend(signal: AbortSignal): AsyncGenerator<AttendResponse> {
    signal.addEventListener('abort', () => {
      wake();
    });
    while (!signal.aborted) {
      yield* news.splice(0);
      await new Promise<void>((resolve) => (wake = resolve));
    }
  }
  const handlers = {
    join: unary(() => ({
      ...{ protocolVersion: PROTOCOL_VERSION, session: 'w0/1', detectWithinMs: DETECT_WITHIN_MS },
      ...{ heartbeatIntervalMs: limits.beatMs, heartbeatTimeoutMs: limits.silenceMs },
    })),
    attend: bidi((_: AsyncIterable<AttendRequest>, { signal }) => attend(signal)),
    commitStep: unary(
      () =>
        new Promise<CommitStepResponse>((resolve) => {
          takeVote(resolve);
        }),
    ),
  };
  const server = await serve([{ definition: CoordinatorServiceService, handlers }], '127.0.0.1:0');
  // It has stood still for an hour.
  const ledger = openLedger({ startMs: clockMs() - 3_600_000 });
  const session = await openSession({
    coordinatorAddress: server.address,
    describe,
    watchForEnd: () => () => Promise.resolve(false),
    ledger,
    limits,
    log: openLog({}, { level: 'silent' }),
  });
  t.after(async () => {
    await Promise.all([session.close(), sleep(50).then(() => server.close())]);
  });
  const tell = (response: AttendResponse): void => {
    news.push(response);
    wake();
  };
  return { session, ledger, tell, voted };
}

function generationOf(number: number): Generation {
  return { number, members: [], committedStep: 3, restoreStep: 0, committedIn: 1 };
}

for (const [what, news] of [
  ['the next generation', { generation: generationOf(2), released: false }],
  ['leave to go', { generation: undefined, released: true }],
] as const) {
  test(`${what} that overtakes the answer to a vote does not cost the checkpoint that it tells of`, async (t) => {
    const { session, tell, voted } = await scripted(t);
    const scope = session.scopeOf(await session.generationAfter(0));
    const committed = session.commit(VOTE, scope);
    const answer = await voted;
    tell(news);
    while (!scope.aborted) await sleep(5);
    answer({ checkpoint: true, last: false, waitedMs: [0] });
    assert.deepEqual(await committed, { checkpoint: true, last: false, waitedMs: [0] });
    // Nothing new begins in a scope that is over.
    await assert.rejects(session.commit(VOTE, scope), { code: 'GENERATION_CHANGED' });
  });
}

test('a vote that is never answered ends with its scope, a little later', async (t) => {
  const { session, tell, voted } = await scripted(t);
  const scope = session.scopeOf(await session.generationAfter(0));
  const committed = session.commit(VOTE, scope);
  await voted;
  tell({ generation: generationOf(2), released: false });
  await assert.rejects(committed, { code: 'GENERATION_CHANGED' });
});

test('who joins has moved, whatever it stood still for before', async (t) => {
  const { ledger } = await scripted(t);
  assert.ok(ledger.pulse().stillMs < 60_000);
});

test('a worker that has given up its coordinator ends as one that can be started again', async () => {
  const lost = openSession({
    ...{ coordinatorAddress: '127.0.0.1:1', limits: { ...limits, reconnectMs: 200 } },
    describe,
    watchForEnd: () => () => Promise.resolve(false),
    ...{ ledger: openLedger(), log: openLog({}, { level: 'silent' }) },
  });
  await assert.rejects(lost, { code: 'COORDINATOR_LOST', retryable: true });
});
