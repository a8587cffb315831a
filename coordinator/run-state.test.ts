import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import type { Generation } from '../proto/gen/videoloom/v1/run.ts';
import { openRng } from '../proto/random.ts';
import type { Rng } from '../proto/random.ts';
import type { RunPlan } from '../proto/run-plan.ts';
import { timeLimits } from '../proto/time-limits.ts';
import { NO_TIME } from '../proto/time-ledger.ts';
import { emptyHistory, extendHistory } from './history.ts';
import type { JournalEvent } from './journal-events.ts';
import { asMembers, chooseMembers } from './membership.ts';
import { isOver } from '../proto/run-phase.ts';
import { initialRunState, transition } from './run-state.ts';
import type { Joiner, RunEffect, RunEvent, RunOrigin, RunState } from './run-state.ts';
import { NEWBORN } from './stillness.ts';
import { totalTime, UNTOLD } from './time-book.ts';
import { ballot, testPlan, verdict } from './test/scripted-worker.ts';

const FRESH = {
  committedStep: 0,
  committedIn: 0,
  restoreStep: 0,
  generationNumber: 0,
  highestStep: 0,
  isFinished: false,
};

/** A beat of a worker that has been doing the same for `stillMs`. */
function beat(session: string, phase: string, stillMs = 0, progress = 0): RunEvent {
  const told = { phase, progress, stillMs, cpuMs: 0 };
  return { type: 'beat', session, step: 1, stateIn: 1, beat: told, isLeaving: false, time: UNTOLD };
}

/** A beat of a worker that wants to go. */
function goodbye(session: string, step: number): RunEvent {
  const told = { phase: 'compute', progress: 0, stillMs: 0, cpuMs: 0 };
  return { type: 'beat', session, step, stateIn: 1, beat: told, isLeaving: true, time: UNTOLD };
}

/** The vote of a worker with the id that its session begins with. */
function vote(session: string, generation: number, step: number): RunEvent {
  return { type: 'vote', callId: 0, request: ballot(session, generation, step) };
}

function joiner(workerId: string, session = `${workerId}/1`, stateStep = 0, stateIn = 0) {
  return {
    workerId,
    session,
    stateStep,
    stateIn,
    host: '',
    tensorAddress: '',
    serviceAddress: '',
    metricsAddress: '',
    engine: '',
    process: workerId,
  };
}

/** Plays events at given times and gives the last state with all effects. */
function play(plan: RunPlan, ...events: (readonly [number, RunEvent])[]) {
  return playOn(initialRunState(plan, FRESH, 0), ...events);
}

/** Beats and a tick every 100 ms. */
function beating(
  fromMs: number,
  toMs: number,
  beats: (atMs: number) => RunEvent[],
): (readonly [number, RunEvent])[] {
  const times = Array.from(
    { length: Math.floor((toMs - fromMs) / 100) + 1 },
    (_, i) => fromMs + 100 * i,
  );
  return times.flatMap((atMs) =>
    [...beats(atMs), { type: 'tick' } as const].map((event) => [atMs, event] as const),
  );
}

/** Members that wait for each other since `sinceMs`. */
function stalling(fromMs: number, toMs: number, reduces: string, waits: string, sinceMs = 0) {
  return beating(fromMs, toMs, (atMs) => [
    beat(reduces, 'reduce', atMs - sinceMs),
    beat(waits, 'wait', atMs - sinceMs),
  ]);
}

/** Members of the generations that were opened. */
function openedBy(effects: readonly RunEffect[]): string[][] {
  return effects.flatMap((effect) =>
    effect.type === 'journal' && effect.event.type === 'generation'
      ? [effect.event.members.map(({ workerId }) => workerId)]
      : [],
  );
}

function playOn(before: RunState, ...events: (readonly [number, RunEvent])[]) {
  let state = before;
  const effects: RunEffect[] = [];
  for (const [atMs, event] of events) {
    const turn = transition(state, event, atMs);
    state = turn.state;
    effects.push(...turn.effects);
  }
  return { state, effects };
}

function enter(...workerIds: string[]): (readonly [number, RunEvent])[] {
  return workerIds.flatMap((id) => [
    [0, { type: 'join', worker: joiner(id) }] as const,
    [0, { type: 'attend', session: `${id}/1` }] as const,
  ]);
}

describe('members of a generation', () => {
  it('get contiguous ranges that cover all microbatches and differ by one at most', () => {
    for (const numMicrobatches of [1, 2, 4, 8, 64]) {
      for (let numWorkers = 1; numWorkers <= 9; numWorkers++) {
        const workers = Array.from({ length: numWorkers }, (_, i) => ({
          ...joiner(`w${i}`),
          isAttending: true,
          lastBeatMs: 0,
          vitals: NEWBORN,
          isLeaving: false,
          time: UNTOLD,
        }));
        const committed = { committedStep: 0, committedIn: 0 };
        const place = { numMicrobatches, committed };
        const members = asMembers(chooseMembers(workers, place), place);
        assert.equal(members.length, Math.min(numWorkers, numMicrobatches));
        let next = 0;
        for (const [rank, member] of members.entries()) {
          assert.equal(member.rank, rank);
          assert.equal(member.firstMicrobatch, next);
          next += member.numMicrobatches;
        }
        assert.equal(next, numMicrobatches);
        const sizes = members.map((member) => member.numMicrobatches);
        assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 1);
      }
    }
  });

  it('are followed by spares, one of which enters when a member is lost', () => {
    const plan = testPlan({ microbatches: 2, minWorkers: 2 });
    const { state } = play(plan, ...enter('a', 'b', 'c'));
    assert.deepEqual(
      state.generation?.members.map(({ workerId }) => workerId),
      ['a', 'b'],
    );
    const after = transition(state, { type: 'detach', session: 'a/1', message: '' }, 1).state;
    assert.deepEqual(
      after.generation?.members.map(({ workerId }) => workerId),
      ['b', 'c'],
    );
  });
});

describe('the state machine of a run', () => {
  it('wait for those that the plan wants, and begin without them after a while', () => {
    const plan = testPlan({ minWorkers: 2, detectWithinMs: 2000 });
    const alone = (toMs: number) => beating(100, toMs, () => [beat('a/1', 'idle')]);
    const opened = (origin: RunOrigin, toMs: number): string[][] =>
      openedBy(playOn(initialRunState(plan, origin, 0), ...enter('a'), ...alone(toMs)).effects);
    assert.deepEqual(opened(FRESH, 60_000), []);
    assert.deepEqual(opened(FRESH, 60_300), [['a']]);
    // A coordinator that was started again, or a run that is resumed.
    const going = { ...FRESH, generationNumber: 3 };
    assert.deepEqual(opened(going, 15_000), []);
    assert.deepEqual(opened(going, 15_300), [['a']]);
    assert.deepEqual(
      openedBy(playOn(initialRunState(plan, going, 0), ...enter('a', 'b')).effects),
      [['a', 'b']],
    );
  });

  it('refuses a worker on the loopback of another host than its members, or where they are', () => {
    const at = (workerId: string, host: string, tensorAddress: string): Joiner => ({
      ...joiner(workerId),
      ...{ host, tensorAddress },
    });
    const pairs: [member: Joiner, refused: Joiner, hidden: string][] = [
      [at('a', 'x', '10.0.0.1:4001'), at('b', 'y', '127.0.0.1:4001'), 'b'],
      [at('a', 'x', '127.0.0.1:4001'), at('b', 'y', '10.0.0.2:4001'), 'a'],
      [at('a', 'x', '10.0.0.1:4001'), at('b', 'y', '0.0.0.0:4001'), 'b'],
    ];
    for (const [member, refused, hidden] of pairs) {
      const { state } = play(
        testPlan({ minWorkers: 1 }),
        [0, { type: 'join', worker: member }],
        [0, { type: 'attend', session: 'a/1' }],
      );
      const join = (worker: Joiner) => () => playOn(state, [1, { type: 'join', worker }]);
      assert.throws(join(refused), {
        code: 'WORKER_ON_LOOPBACK',
        message: new RegExp(`Start worker "${hidden}" with --listen`),
      });
      // The same process started again on its own host, and another one beside it, may join.
      assert.doesNotThrow(join(at('a', 'y', refused.tensorAddress)));
      assert.doesNotThrow(join({ ...refused, host: member.host }));
    }
  });

  it('journals a commit before it answers any vote', () => {
    const { effects } = play(
      testPlan({ minWorkers: 2 }),
      ...enter('a', 'b'),
      [1, { type: 'vote', callId: 1, request: ballot('a/1', 1, 1) }],
      [2, { type: 'vote', callId: 2, request: ballot('b/1', 1, 1) }],
    );
    const kinds = effects.map((effect) =>
      effect.type === 'journal' ? effect.event.type : effect.type,
    );
    assert.deepEqual(kinds.slice(kinds.indexOf('commit')), ['commit', 'answer', 'answer']);
  });

  it('does not drop anybody for its own absence', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 2 });
    const before = play(plan, ...enter('a', 'b'), [100, { type: 'tick' }]).state;
    const thawed = transition(before, { type: 'tick' }, 30_000).state;
    assert.equal(thawed.workers.length, 2);
    let state = thawed;
    for (let atMs = 30_100; atMs < 31_100; atMs += 100)
      state = transition(state, { type: 'tick' }, atMs).state;
    assert.equal(state.workers.length, 0);
    assert.equal(state.phase, RunPhase.WAITING);
  });

  it('drops all that are silent at once, and opens one generation for it', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 3 });
    const events: [number, RunEvent][] = [];
    for (let atMs = 100; atMs <= 1200; atMs += 100) {
      events.push([atMs, beat('c/1', 'compute')], [atMs, { type: 'tick' }]);
    }
    const { state } = play(plan, ...enter('a', 'b', 'c'), ...events);
    assert.deepEqual(
      state.generation?.members.map(({ workerId }) => workerId),
      ['c'],
    );
    assert.equal(state.generationNumber, 2);
  });

  it('tells who does what when a group waits for itself, and lets it connect anew', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 2 });
    const { state, effects } = play(plan, ...enter('a', 'b'), ...stalling(100, 4000, 'a/1', 'b/1'));
    const stalls = effects.filter((effect) => effect.type === 'stalled');
    assert.match(stalls[0]!.message, /"a" in phase reduce, "b" in phase wait/);
    // Once with the same members, then without the last of them.
    assert.deepEqual(openedBy(effects), [
      ['a', 'b'],
      ['a', 'b'],
    ]);
    const later = playOn(state, ...stalling(4100, 4200, 'a/1', 'b/1'));
    assert.deepEqual(openedBy(later.effects), [['a']]);
    const [lost] = later.effects.flatMap((effect) =>
      effect.type === 'journal' && effect.event.type === 'worker-lost' ? [effect.event] : [],
    );
    assert.equal(lost?.reason, 'unreachable');
    assert.match(lost.message, /"b" \(rank 1, phase wait\) sits out for 15 s/);
  });

  it('lets one that was not reached sit out, longer each time, until a step is committed with it', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 2 });
    let { state } = play(plan, ...enter('a', 'b'), ...stalling(100, 4200, 'a/1', 'b/1'));
    /** It comes back under another session; the other one trains on. */
    const returns = (session: string, fromMs: number, step: number) => {
      const before = playOn(
        state,
        [fromMs, { type: 'join', worker: joiner('b', session) }],
        [fromMs, { type: 'attend', session }],
      ).state;
      assert.equal(before.generation?.members.length, 1);
      return playOn(before, [fromMs, vote('a/1', before.generationNumber, step)]).state;
    };
    state = returns('b/2', 4300, 1);
    assert.equal(state.generation?.members.length, 1);
    // After its time it is a member again; the link is still dead: nobody is asked to connect anew this time.
    const early = playOn(state, [19_000, beat('b/2', 'idle')], [19_000, beat('a/1', 'wait')]).state;
    state = playOn(early, [19_300, vote('a/1', early.generationNumber, 2)]).state;
    assert.equal(state.generation?.members.length, 2);
    const again = playOn(state, ...stalling(19_400, 21_400, 'a/1', 'b/2', 19_300));
    assert.deepEqual(openedBy(again.effects), [['a']]);
    state = again.state;
    assert.equal(state.rests.get('b')?.lengthMs, 30_000);
    // The third time the link is back.
    state = returns('b/3', 21_500, 3);
    state = playOn(state, [51_500, beat('b/3', 'idle')], [51_500, beat('a/1', 'wait')]).state;
    state = playOn(state, [51_500, vote('a/1', state.generationNumber, 4)]).state;
    assert.equal(state.generation?.members.length, 2);
    state = playOn(
      state,
      [51_600, vote('a/1', state.generationNumber, 5)],
      [51_700, vote('b/3', state.generationNumber, 5)],
    ).state;
    assert.deepEqual([state.committedStep, state.rests.size], [5, 0]);
  });

  it('takes nobody for waiting that maps memory or compiles meanwhile', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 2 });
    const working = (session: string, atMs: number): RunEvent => {
      const told = { phase: 'wait', progress: 0, stillMs: atMs, cpuMs: atMs / 2 };
      return {
        type: 'beat',
        session,
        step: 1,
        stateIn: 1,
        beat: told,
        isLeaving: false,
        time: UNTOLD,
      };
    };
    const { effects } = play(
      plan,
      ...enter('a', 'b'),
      ...beating(100, 60_000, (atMs) => [beat('a/1', 'wait', atMs), working('b/1', atMs)]),
    );
    assert.deepEqual(openedBy(effects), [['a', 'b']]);
  });

  it('gives up at a barrier who is late, and names the rank to each', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 3 });
    const { state, effects } = play(
      plan,
      ...enter('a', 'b', 'c'),
      [10, { type: 'vote', callId: 1, request: ballot('b/1', 1, 1) }],
      ...beating(100, 330_500, (atMs) => [
        beat('a/1', 'compute', 0, atMs),
        beat('b/1', 'wait', atMs),
        beat('c/1', 'decode', 0, atMs),
      ]),
    );
    const dismissals = effects.filter((effect) => effect.type === 'dismiss');
    assert.equal(dismissals.length, 2);
    for (const { error } of dismissals) {
      assert.equal(error.code, 'BARRIER_TIMEOUT');
      assert.match(error.message, /ranks 0 \("a"\), 2 \("c"\) did not come within 330000 ms/);
    }
    assert.deepEqual(
      state.generation?.members.map(({ workerId }) => workerId),
      ['b'],
    );
  });

  it('strikes off who beats and makes no progress, and nobody who is slow', () => {
    const plan = testPlan({ detectWithinMs: 1000, minWorkers: 2 });
    // A microbatch a second for both; then the one stands still, and the other begins one that takes eight times as long.
    const events = beating(100, 31_000, (atMs) =>
      [20_000, 24_000].map((untilMs, i) => {
        const stillMs = atMs < untilMs ? atMs % 1000 : atMs - untilMs;
        return beat(
          `${['stuck', 'slow'][i]!}/1`,
          'compute',
          stillMs,
          Math.floor(Math.min(atMs, untilMs) / 1000),
        );
      }),
    );
    const { state, effects } = play(plan, ...enter('slow', 'stuck'), ...events);
    assert.deepEqual(
      state.workers.map(({ workerId }) => workerId),
      ['slow'],
    );
    const [lost] = effects.flatMap((effect) =>
      effect.type === 'journal' && effect.event.type === 'worker-lost' ? [effect.event] : [],
    );
    assert.equal(lost?.reason, 'stalled');
    assert.ok(lost.afterMs! > 10_000 && lost.afterMs! < 10_500, `${lost.afterMs}`);
    assert.match(lost.message, /"stuck" \(rank 1\) has been in phase compute without progress/);
  });

  it('lets one that wants to leave go when the step is committed, and the others go on without it', () => {
    const { state, effects } = play(
      testPlan({ minWorkers: 2 }),
      ...enter('a', 'b'),
      [10, goodbye('b/1', 0)],
      [20, vote('a/1', 1, 1)],
      [30, vote('b/1', 1, 1)],
      [40, { type: 'detach', session: 'b/1', message: 'it ended its session' }],
      [50, vote('a/1', 2, 2)],
    );
    assert.equal(state.committedStep, 2);
    const order = effects.flatMap((effect) =>
      effect.type === 'release' || effect.type === 'journal'
        ? [effect.type === 'journal' ? effect.event.type : `release ${effect.session}`]
        : [],
    );
    assert.deepEqual(order, [
      ...['worker-joined', 'worker-joined', 'generation', 'commit'],
      ...['generation', 'release b/1', 'worker-left', 'commit'],
    ]);
    assert.deepEqual(
      state.generation?.members.map(({ workerId, holdsState }) => [workerId, holdsState]),
      [['a', true]],
    );
  });

  it('goes back no further than the checkpoint whose manifest is being written when all are lost', () => {
    const part = { session: 'a/1', generation: 1, step: 2, files: [], failure: '' };
    const written = play(
      testPlan({ checkpointEverySteps: 2 }),
      ...enter('a'),
      [10, vote('a/1', 1, 1)],
      [20, vote('a/1', 1, 2)],
      [30, { type: 'part', callId: 1, request: part }],
      [40, { type: 'detach', session: 'a/1', message: 'killed' }],
      ...enter('b'),
    );
    assert.equal(written.state.generation, undefined);
    for (const failure of [undefined, 'disk full']) {
      const outcome = { step: 2, generation: 1, callId: 1, sizeBytes: 1, failure };
      const { state, effects } = playOn(written.state, [
        50,
        { type: 'checkpoint-settled', ...outcome },
      ]);
      const step = failure === undefined ? 2 : 0;
      const { committedStep, restoreStep } = state.generation!;
      assert.deepEqual([committedStep, restoreStep], [step, step]);
      const restored = effects.filter(
        (effect) => effect.type === 'journal' && effect.event.type === 'restored',
      );
      assert.equal(restored.length, failure === undefined ? 0 : 1);
    }
  });

  it('counts nobody as holding a step that was computed again without them', () => {
    // Step 1 is lost with "a", which was only cut off: among others its sum may be another one.
    const { state } = play(
      testPlan(),
      ...enter('a'),
      [10, vote('a/1', 1, 1)],
      [20, { type: 'detach', session: 'a/1', message: 'cut off' }],
      ...enter('b'),
      [40, { type: 'join', worker: joiner('a', 'a/2', 1, 1) }],
      [40, { type: 'attend', session: 'a/2' }],
      [50, vote('b/1', 2, 1)],
    );
    const { committedStep, committedIn, members } = state.generation!;
    assert.deepEqual([committedStep, committedIn], [1, 2]);
    assert.deepEqual(
      members.map(({ workerId, holdsState }) => [workerId, holdsState]),
      [
        ['b', true],
        ['a', false],
      ],
    );
  });

  it('takes a checkpoint when all want to leave, and goes on from it with whoever comes next', () => {
    const commit = play(
      testPlan(),
      ...enter('a'),
      [10, goodbye('a/1', 0)],
      [20, vote('a/1', 1, 1)],
    );
    assert.equal(commit.state.phase, RunPhase.WAITING);
    const response = commit.effects.flatMap((effect) =>
      effect.type === 'answer' ? [effect.response] : [],
    );
    assert.deepEqual(response, [{ checkpoint: true, last: false, waitedMs: [0] }]);
    const part = { session: 'a/1', generation: 1, step: 1, files: [], failure: '' };
    const { state } = playOn(
      commit.state,
      [30, { type: 'part', callId: 1, request: part }],
      [40, { type: 'detach', session: 'a/1', message: '' }],
      [
        50,
        {
          type: 'checkpoint-settled',
          ...{ step: 1, generation: 1, callId: 1, sizeBytes: 1, failure: undefined },
        },
      ],
      ...enter('b'),
    );
    assert.deepEqual([state.restoreStep, state.committedStep], [1, 1]);
    assert.equal(state.generation?.members[0]?.holdsState, false);
  });

  it('stops only when the checkpoint of those who have just left is there, or has come to nothing', () => {
    const left = play(
      testPlan(),
      ...enter('a'),
      [10, goodbye('a/1', 0)],
      [20, vote('a/1', 1, 1)],
      [30, { type: 'stop' }],
    );
    assert.equal(left.state.phase, RunPhase.WAITING);
    const part = { session: 'a/1', generation: 1, step: 1, files: [], failure: '' };
    const outcome = { step: 1, generation: 1, sizeBytes: 1, failure: undefined };
    const kept = playOn(
      left.state,
      [40, { type: 'part', callId: 1, request: part }],
      [50, { type: 'detach', session: 'a/1', message: '' }],
      [60, { type: 'checkpoint-settled', ...outcome }],
    );
    const lost = playOn(left.state, [40, { type: 'detach', session: 'a/1', message: 'killed' }]);
    const endOf = ({ state, effects }: typeof left): unknown[] => [
      ...[state.phase, state.restoreStep],
      ...effects.flatMap((effect) => (effect.type === 'journal' ? [effect.event.type] : [])),
    ];
    assert.deepEqual(endOf(kept).slice(0, 2), [RunPhase.STOPPED, 1]);
    assert.deepEqual(endOf(kept).slice(-2), ['checkpoint', 'stopped']);
    assert.deepEqual(endOf(lost).slice(0, 2), [RunPhase.STOPPED, 0]);
    assert.deepEqual(endOf(lost).slice(-2), ['checkpoint-failed', 'stopped']);
  });

  it('keeps a share that is on disk where its worker does not know that it was taken', () => {
    const share = (session: string, failure = ''): RunEvent => {
      const request = { session, generation: 1, step: 2, files: [], failure };
      return { type: 'part', callId: 1, request };
    };
    const { effects } = play(
      testPlan({ microbatches: 2, minWorkers: 2, checkpointEverySteps: 2 }),
      ...enter('a', 'b'),
      ...[1, 2].flatMap((step) =>
        ['a/1', 'b/1'].map((session) => [10 * step, vote(session, 1, step)] as const),
      ),
      [30, share('a/1')],
      [40, share('a/1', 'no answer')],
      [50, share('b/1')],
    );
    assert.equal(effects.filter(({ type }) => type === 'write-manifest').length, 1);
    assert.ok(
      !effects.some(({ type, ...rest }) => JSON.stringify([type, rest]).includes('write-failed')),
    );
  });

  it('begins no checkpoint while the last one is on its way to the disk, and the next one behind it', () => {
    const plan = testPlan({ totalSteps: 100, checkpointEverySteps: 2, minWorkers: 1 });
    const share = (step: number, callId: number): RunEvent => {
      const request = { session: 'a/1', generation: 1, step, files: [], failure: '' };
      return { type: 'part', callId, request };
    };
    const votes = (from: number, to: number): (readonly [number, RunEvent])[] =>
      Array.from({ length: to - from + 1 }, (_, i) => [10 * (from + i), vote('a/1', 1, from + i)]);
    const begunBy = (effects: readonly RunEffect[]): number[] =>
      effects.flatMap((effect) =>
        effect.type === 'journal' && effect.event.type === 'commit' && effect.event.checkpoint
          ? [effect.event.step]
          : [],
      );
    const settled = { type: 'checkpoint-settled', generation: 1, sizeBytes: 1 } as const;
    const first = play(plan, ...enter('a'), ...votes(1, 5), [55, share(2, 1)]);
    const { state, effects } = playOn(
      first.state,
      [56, share(2, 2)], // its answer was slow
      [57, { ...settled, step: 2, failure: undefined }],
      ...votes(6, 7),
    );
    assert.deepEqual(begunBy([...first.effects, ...effects]), [2, 6]);
    assert.equal(state.restoreStep, 2);
    const answered = effects.filter(
      (effect) => effect.type === 'answer' && 'complete' in effect.response,
    );
    assert.deepEqual(answered, [
      { type: 'answer', callId: 1, response: { complete: true } },
      { type: 'answer', callId: 2, response: { complete: true } },
    ]);
    // One that does not come is given up for the next, much later.
    const lateMs = 70 + timeLimits(plan).checkpointMs;
    const late = playOn(state, [lateMs, vote('a/1', 1, 8)], [lateMs + 10, vote('a/1', 1, 9)]);
    assert.deepEqual(begunBy(late.effects), [8]);
  });

  it('takes a checkpoint of what is held before it ends for a stop, also just after it was started again', () => {
    const plan = testPlan({ totalSteps: 1000, minWorkers: 2 });
    const origin = { ...FRESH, committedStep: 487, committedIn: 3, generationNumber: 3 };
    const opened = initialRunState(plan, { ...origin, highestStep: 487 }, 0);
    const told = ({ state, effects }: ReturnType<typeof play>): unknown[] => [
      state.phase,
      ...effects.flatMap((effect) =>
        effect.type === 'journal' && /commit|stopped/.test(effect.event.type) ? [effect.event] : [],
      ),
    ];
    // One that holds it comes before the stop, or after it.
    const join: RunEvent = { type: 'join', worker: joiner('a', 'a/1', 487, 3) };
    const comes = [join, { type: 'attend', session: 'a/1' }] as const;
    for (const order of [
      [...comes, { type: 'stop' }],
      [{ type: 'stop' }, { type: 'tick' }, ...comes],
    ] as const) {
      const held = playOn(opened, ...order.map((event) => [10, event] as const), [
        20,
        vote('a/1', 4, 488),
      ]);
      const [phase, commit] = told(held) as [RunPhase, { step: number; checkpoint: boolean }];
      assert.deepEqual([phase, commit.step, commit.checkpoint], [RunPhase.TRAINING, 488, true]);
    }
    // Nobody does, nor comes.
    const nobody = playOn(
      opened,
      [10, { type: 'stop' }],
      [20, { type: 'join', worker: joiner('b') }],
      [20, { type: 'attend', session: 'b/1' }],
    );
    assert.deepEqual(told(nobody), [RunPhase.WAITING]);
    const end = playOn(nobody.state, [30_000, { type: 'tick' }]);
    assert.deepEqual(told(end).slice(0, 1), [RunPhase.STOPPED]);
    // Where the checkpoint is as new there is nothing to wait for.
    const kept = initialRunState(plan, { ...origin, highestStep: 487, restoreStep: 487 }, 0);
    assert.equal(playOn(kept, [10, { type: 'stop' }]).state.phase, RunPhase.STOPPED);
  });

  it('lets who has read a checkpoint keep it where its generation is over meanwhile', () => {
    const origin = { ...FRESH, committedStep: 6, committedIn: 2, generationNumber: 2 };
    const plan = testPlan({ totalSteps: 1000, minWorkers: 1 });
    const opened = initialRunState(plan, { ...origin, highestStep: 6, restoreStep: 6 }, 0);
    const { effects } = playOn(
      opened,
      ...enter('a'),
      [10, { type: 'detach', session: 'a/1', message: '' }],
      [20, { type: 'join', worker: joiner('b') }],
      [20, { type: 'attend', session: 'b/1' }],
    );
    const generations = effects.flatMap((effect) =>
      effect.type === 'announce' ? [effect.generation] : [],
    );
    assert.deepEqual(
      generations.map(({ number, committedIn }) => [number, committedIn]),
      [
        [3, 2],
        [4, 2],
      ],
    );
  });

  it('keeps one that wants to leave for a step while it alone holds what a joiner needs', () => {
    const before = play(testPlan(), ...enter('a'), [10, goodbye('a/1', 0)], ...enter('b'));
    const { state } = playOn(before.state, [20, vote('a/1', 1, 1)]);
    const members = state.generation?.members.map(({ workerId, holdsState }) => [
      workerId,
      holdsState,
    ]);
    assert.deepEqual(members, [
      ['a', true],
      ['b', false],
    ]);
    const after = playOn(state, [30, vote('a/1', 2, 2)], [40, vote('b/1', 2, 2)]);
    assert.deepEqual(after.state.memberSessions, ['b/1']);
    assert.equal(after.state.committedStep, 2);
  });

  it('tells how long each vote waited for the last one', () => {
    const { effects } = play(
      testPlan({ minWorkers: 2 }),
      ...enter('a', 'b'),
      [100, vote('b/1', 1, 1)],
      [700, vote('a/1', 1, 1)],
    );
    const answers = effects.flatMap((effect) =>
      effect.type === 'answer' && 'waitedMs' in effect.response ? [effect.response.waitedMs] : [],
    );
    assert.deepEqual(answers, [
      [0, 600],
      [0, 600],
    ]);
  });

  it('books the step under way of a lost worker as time redone, and what it told before as it was', () => {
    const settled = { ...NO_TIME, computeSeconds: 3, setupSeconds: 2, wallSeconds: 5 };
    const step = { ...NO_TIME, computeSeconds: 3, waitSeconds: 1, wallSeconds: 4 };
    const told = { ...beat('b/1', 'compute'), time: { settled, step } } as RunEvent;
    const { effects, state } = play(
      testPlan(),
      ...enter('a', 'b'),
      [10, told],
      [20, { type: 'detach', session: 'b/1', message: 'killed' }],
    );
    const history = emptyHistory();
    for (const effect of effects)
      if (effect.type === 'journal') extendHistory(history, effect.event);
    const gone = { ...settled, redoSeconds: 4, wallSeconds: 9 };
    assert.deepEqual([...history.times], [['b', gone]]);
    assert.deepEqual(totalTime(state.workers, history.times, { withStep: true }), gone);
  });

  it('holds its promises through 300 random histories', () => {
    for (let seed = 1; seed <= 300; seed++) simulate(seed);
    assert.ok(totals.commits > 2000 && totals.generations > 1500, JSON.stringify(totals));
    assert.ok(totals.coordinatorDeaths > 100 && totals.refusals > 500, JSON.stringify(totals));
    assert.ok(totals.resultsNotKept > 0, JSON.stringify(totals));
  });
});

// The simulation: workers that come, go, freeze and repeat themselves; a network that loses, delays and doubles; a
// coordinator that dies. First with faults (safety), then without (liveness).

const totals = {
  commits: 0,
  generations: 0,
  refusals: 0,
  coordinatorDeaths: 0,
  rollbacks: 0,
  resultsNotKept: 0,
};

interface SimWorker {
  readonly workerId: string;
  session: string | undefined;
  isAttending: boolean;
  generation: Generation | undefined;
  stateStep: number;
  /** The generation that committed that step. */
  stateIn: number;
  /** Step whose reduced gradient it holds, and the generation that added it up. */
  gradientStep: number;
  gradientIn: number;
  /** What its state is made of: of each step the generation that added it up, as if each had an order of its own. */
  bits: readonly number[];
  /** Whether it holds the state that its generation goes on from, or a later one. */
  isAligned: boolean;
  waitingCall: number | undefined;
  /** Generation that it has written the last checkpoint for. */
  writtenFor: number;
}

interface Simulation {
  readonly plan: RunPlan;
  readonly rng: Rng;
  readonly workers: SimWorker[];
  readonly journal: { event: JournalEvent; isSynced: boolean }[];
  readonly checkpoints: Set<number>;
  readonly inFlight: RunEvent[];
  readonly answered: Set<number>;
  readonly asked: Map<number, SimWorker>;
  /** Sessions that have voted, by generation and step; members by generation. */
  readonly votes: Map<string, Set<string>>;
  readonly members: Map<number, readonly string[]>;
  /** The states that votes were given on, by generation and step; of shares, by call; of checkpoints, by step. */
  readonly bitsVotedOn: Map<string, string>;
  readonly shareBits: Map<number, readonly number[]>;
  readonly checkpointBits: Map<number, readonly number[]>;
  state: RunState;
  /** No more faults. */
  isPeaceful: boolean;
  nowMs: number;
  nextId: number;
}

function simulate(seed: number): void {
  const rng = openRng(seed, 'simulation');
  const plan = testPlan({
    microbatches: 2 ** rng.integer(4),
    totalSteps: 4 + rng.integer(20),
    checkpointEverySteps: 1 + rng.integer(6),
    minWorkers: 1 + rng.integer(3),
    detectWithinMs: 2400,
  });
  const sim: Simulation = {
    plan,
    rng,
    workers: Array.from({ length: 1 + rng.integer(6) }, (_, i) => newProcess(`w${i}`)),
    journal: [],
    checkpoints: new Set(),
    inFlight: [],
    answered: new Set(),
    asked: new Map(),
    votes: new Map(),
    members: new Map(),
    bitsVotedOn: new Map(),
    shareBits: new Map(),
    checkpointBits: new Map(),
    state: initialRunState(plan, FRESH, 0),
    isPeaceful: false,
    nowMs: 0,
    nextId: 1,
  };
  for (let i = 0; i < 400 && !isOver(sim.state); i++) turnOfFate(sim);
  if (sim.state.phase === RunPhase.FAILED) {
    // It is started again, as it says.
    assert.equal(sim.state.failure?.code, 'RESULT_NOT_KEPT', `seed ${seed}`);
    totals.resultsNotKept++;
    killCoordinator(sim, false);
  }
  sim.isPeaceful = true;
  while (sim.workers.length < plan.minWorkers)
    sim.workers.push(newProcess(`late${sim.workers.length}`));
  for (let i = 0; i < 20_000 && !isOver(sim.state); i++) turnOfPeace(sim);
  assert.equal(sim.state.phase, RunPhase.FINISHED, `seed ${seed} does not finish`);
  assert.ok(sim.checkpoints.has(plan.totalSteps), `seed ${seed} does not keep its result`);
  assertLedger(sim, seed);
}

function newProcess(workerId: string): SimWorker {
  return {
    workerId,
    session: undefined,
    isAttending: false,
    generation: undefined,
    stateStep: 0,
    stateIn: 0,
    gradientStep: 0,
    gradientIn: 0,
    bits: [],
    isAligned: false,
    waitingCall: undefined,
    writtenFor: 0,
  };
}

/** Applies the gradient that a worker holds. */
function step(worker: SimWorker): void {
  worker.stateStep++;
  worker.stateIn = worker.gradientIn;
  worker.bits = [...worker.bits, worker.gradientIn];
}

function turnOfFate(sim: Simulation): void {
  const { rng, workers } = sim;
  const dice = rng.uniform();
  const worker = workers[rng.integer(workers.length)]!;
  if (dice < 0.02)
    Object.assign(worker, { ...newProcess(worker.workerId), session: worker.session });
  if (dice < 0.06) disconnect(sim, worker);
  else if (dice < 0.065) killCoordinator(sim, rng.uniform() < 0.3);
  else if (dice < 0.1)
    worker.waitingCall = undefined; // The caller gives up waiting and asks again.
  else if (dice < 0.13 && sim.inFlight.length > 0) {
    const lost = rng.integer(sim.inFlight.length);
    // What becomes of a manifest is told within the coordinator's process.
    if (sim.inFlight[lost]!.type !== 'checkpoint-settled') sim.inFlight.splice(lost, 1);
  } else if (dice < 0.16 && sim.inFlight.length > 0) {
    sim.inFlight.push(again(sim, sim.inFlight[rng.integer(sim.inFlight.length)]!));
  } else if (dice < 0.17) sim.nowMs += 2500;
  else turnOfPeace(sim);
}

function turnOfPeace(sim: Simulation): void {
  sim.nowMs += 1 + sim.rng.integer(20);
  const worker = sim.workers[sim.rng.integer(sim.workers.length)]!;
  if (sim.rng.uniform() < 0.5) act(sim, worker);
  else if (sim.inFlight.length > 0) {
    deliver(sim, sim.inFlight.splice(sim.rng.integer(sim.inFlight.length), 1)[0]!);
  }
  for (const { session, stateStep, stateIn } of sim.workers) {
    if (session !== undefined)
      deliver(sim, { ...beat(session, 'compute'), step: stateStep, stateIn } as RunEvent);
  }
  deliver(sim, { type: 'tick' });
}

/** What a worker does next, by the contract in the proto files. */
function act(sim: Simulation, worker: SimWorker): void {
  if (worker.session === undefined) {
    const session = `${worker.workerId}/${sim.nextId++}`;
    worker.session = session;
    const { workerId, stateStep, stateIn } = worker;
    deliver(sim, { type: 'join', worker: joiner(workerId, session, stateStep, stateIn) });
    return;
  }
  if (sim.rng.uniform() < 0.02) worker.waitingCall = undefined; // The deadline of its call has passed.
  const { session, generation } = worker;
  if (!worker.isAttending) {
    worker.isAttending = true;
    deliver(sim, { type: 'attend', session });
    return;
  }
  const isMember =
    generation?.members.some(({ workerId }) => workerId === worker.workerId) === true;
  if (
    !isMember ||
    worker.waitingCall !== undefined ||
    !(worker.isAligned ||= align(sim, worker, generation))
  )
    return;
  const callId = sim.nextId++;
  worker.waitingCall = callId;
  sim.asked.set(callId, worker);
  if (worker.stateStep >= sim.plan.totalSteps) {
    const { number, restoreStep } = generation;
    if (restoreStep < worker.stateStep && worker.writtenFor !== number) {
      worker.writtenFor = number;
      sim.inFlight.push(partOf(sim, worker, callId));
      return;
    }
    sim.inFlight.push({ type: 'result', callId, request: verdict(session, generation.number) });
    return;
  }
  worker.gradientStep = worker.stateStep + 1;
  worker.gradientIn = generation.number;
  const key = `${generation.number}/${worker.gradientStep}`;
  const bits = worker.bits.join();
  assert.equal(bits, sim.bitsVotedOn.get(key) ?? bits, `members of ${key} hold different states`);
  sim.bitsVotedOn.set(key, bits);
  sim.inFlight.push({
    type: 'vote',
    callId,
    request: ballot(session, generation.number, worker.gradientStep),
  });
}

/** Brings a worker to the state that its generation goes on from; false while it cannot be had. */
function align(
  sim: Simulation,
  worker: SimWorker,
  { committedStep, committedIn, restoreStep, members }: Generation,
): boolean {
  const holdsState = ({ stateStep, stateIn }: SimWorker): boolean =>
    stateStep === committedStep && stateIn === committedIn;
  const holdsGradient = ({ stateStep, gradientStep, gradientIn }: SimWorker): boolean =>
    stateStep === committedStep - 1 && gradientStep === committedStep && gradientIn === committedIn;
  if (holdsState(worker)) return true;
  if (holdsGradient(worker)) {
    step(worker);
    return true;
  }
  if (committedStep === restoreStep) {
    assert.ok(
      restoreStep === 0 || sim.checkpoints.has(restoreStep),
      'a generation restores what does not exist',
    );
    Object.assign(worker, { stateStep: restoreStep, stateIn: committedIn });
    worker.bits = sim.checkpointBits.get(restoreStep) ?? [];
    return true;
  }
  const holder = sim.workers.find(
    (peer) =>
      members.some(({ workerId }) => workerId === peer.workerId) &&
      (holdsState(peer) || holdsGradient(peer)),
  );
  if (holder === undefined) return false;
  if (holder.stateStep < committedStep) step(holder);
  Object.assign(worker, { stateStep: committedStep, stateIn: committedIn });
  worker.bits = holder.bits;
  return true;
}

function again(sim: Simulation, event: RunEvent): RunEvent {
  if (!('callId' in event)) return { type: 'tick' };
  const callId = sim.nextId++;
  sim.asked.set(callId, sim.asked.get(event.callId)!);
  const bits = sim.shareBits.get(event.callId);
  if (bits !== undefined) sim.shareBits.set(callId, bits);
  return { ...event, callId };
}

function disconnect(sim: Simulation, worker: SimWorker): void {
  const { session } = worker;
  Object.assign(worker, {
    session: undefined,
    isAttending: false,
    generation: undefined,
    waitingCall: undefined,
  });
  if (session !== undefined) sim.inFlight.push({ type: 'detach', session, message: '' });
}

/** All that was in memory is gone, and after a loss of power all that was not on disk yet. */
function killCoordinator(sim: Simulation, losesPower: boolean): void {
  if (losesPower) {
    const numSynced = sim.journal.findLastIndex(({ isSynced }) => isSynced) + 1;
    sim.journal.length = Math.max(numSynced, sim.rng.integer(sim.journal.length + 1));
  }
  const history = emptyHistory();
  for (const { event } of sim.journal) extendHistory(history, event);
  const { generationNumber, highestStep, lastCommit } = history;
  const restoreStep = Math.max(0, ...sim.checkpoints);
  const committedStep = Math.max(history.committedStep, restoreStep);
  const committedIn = lastCommit?.step === committedStep ? lastCommit.generation : 0;
  const isFinished = history.finished !== undefined;
  sim.state = initialRunState(
    sim.plan,
    { committedStep, committedIn, restoreStep, generationNumber, highestStep, isFinished },
    sim.nowMs,
  );
  sim.inFlight.length = 0;
  for (const worker of sim.workers) {
    Object.assign(worker, {
      session: undefined,
      isAttending: false,
      generation: undefined,
      waitingCall: undefined,
    });
  }
  totals.coordinatorDeaths++;
}

function deliver(sim: Simulation, event: RunEvent): void {
  if (event.type === 'vote') {
    const { session, generation, step } = event.request;
    const key = `${generation}/${step}`;
    sim.votes.set(key, (sim.votes.get(key) ?? new Set()).add(session));
  }
  let turn: ReturnType<typeof transition>;
  try {
    turn = transition(sim.state, event, sim.nowMs);
  } catch (error) {
    assert.ok(error instanceof Error && 'code' in error, String(error));
    totals.refusals++;
    if ('callId' in event) answer(sim, event.callId, undefined);
    if ('callId' in event && (error.code === 'UNKNOWN_SESSION' || error.code === 'FENCED')) {
      const worker = sim.asked.get(event.callId);
      if (worker?.session === (event as { request: { session: string } }).request.session)
        disconnect(sim, worker);
    }
    return;
  }
  const before = sim.state;
  sim.state = turn.state;
  for (const effect of turn.effects) perform(sim, before, effect);
}

function perform(sim: Simulation, before: RunState, effect: RunEffect): void {
  switch (effect.type) {
    case 'journal':
      record(sim, before, effect.event, effect.sync);
      return;
    case 'announce':
      for (const session of effect.sessions) {
        const worker = sim.workers.find((candidate) => candidate.session === session);
        if (worker !== undefined)
          Object.assign(worker, {
            generation: effect.generation,
            isAligned: false,
            waitingCall: undefined,
          });
      }
      return;
    case 'answer':
      answer(sim, effect.callId, 'checkpoint' in effect.response ? effect.response : undefined);
      return;
    case 'refuse':
      totals.refusals++;
      answer(sim, effect.callId, undefined);
      return;
    case 'dismiss': {
      const worker = sim.workers.find(({ session }) => session === effect.session);
      if (worker !== undefined) {
        Object.assign(worker, {
          session: undefined,
          isAttending: false,
          generation: undefined,
          waitingCall: undefined,
        });
      }
      return;
    }
    case 'write-manifest': {
      const { step, generation } = effect;
      const [callId] = sim.state.completing.get(step)!;
      const failure = !sim.isPeaceful && sim.rng.uniform() < 0.1 ? 'disk full' : undefined;
      if (failure === undefined) {
        sim.checkpoints.add(step);
        sim.checkpointBits.set(step, sim.shareBits.get(callId!)!);
      }
      deliverLater(sim, {
        type: 'checkpoint-settled',
        step,
        generation,
        sizeBytes: 1,
        failure,
      });
      return;
    }
    case 'release':
    case 'stalled':
    case 'over':
      return;
  }
}

function deliverLater(sim: Simulation, event: RunEvent): void {
  sim.inFlight.push(event);
}

function answer(
  sim: Simulation,
  callId: number,
  committed: { checkpoint: boolean } | undefined,
): void {
  assert.ok(!sim.answered.has(callId), `call ${callId} was answered twice`);
  sim.answered.add(callId);
  const worker = sim.asked.get(callId);
  if (worker?.waitingCall !== callId) return; // It does not listen any more.
  worker.waitingCall = undefined;
  if (committed === undefined || worker.gradientStep !== worker.stateStep + 1) return;
  step(worker);
  if (!committed.checkpoint || worker.session === undefined) return;
  const partCall = sim.nextId++;
  sim.inFlight.push(partOf(sim, worker, partCall));
  if (worker.stateStep < sim.plan.totalSteps) return;
  // The result waits for the last checkpoint.
  worker.writtenFor = worker.generation!.number;
  worker.waitingCall = partCall;
  sim.asked.set(partCall, worker);
}

/** A worker's share of a checkpoint, written or not. */
function partOf(sim: Simulation, worker: SimWorker, callId: number): RunEvent {
  const failure = !sim.isPeaceful && sim.rng.uniform() < 0.1 ? 'disk full' : '';
  const session = worker.session!;
  const generation = worker.generation!.number;
  const request = { session, generation, step: worker.stateStep, files: [], failure };
  sim.shareBits.set(callId, worker.bits);
  return { type: 'part', callId, request };
}

function record(sim: Simulation, before: RunState, event: JournalEvent, isSynced: boolean): void {
  const history = emptyHistory();
  if (event.type === 'generation') {
    for (const entry of sim.journal) extendHistory(history, entry.event);
    assert.ok(event.generation > history.generationNumber, 'a generation number was used twice');
    assert.ok(isSynced, 'a generation is announced before it is on disk');
    sim.members.set(
      event.generation,
      event.members.map(({ workerId }) => workerId),
    );
    totals.generations++;
  }
  if (event.type === 'commit') {
    assert.equal(
      event.generation,
      before.generation?.number,
      'a commit outside of the generation in force',
    );
    assert.equal(event.step, before.committedStep + 1, 'a commit out of order');
    const voters = new Set(
      [...(sim.votes.get(`${event.generation}/${event.step}`) ?? [])].map(
        (session) => session.split('/')[0],
      ),
    );
    for (const workerId of sim.members.get(event.generation)!) {
      assert.ok(
        voters.has(workerId),
        `step ${event.step} was committed without the vote of ${workerId}`,
      );
    }
    totals.commits++;
  }
  if (event.type === 'restored') totals.rollbacks++;
  sim.journal.push({ event, isSynced });
}

/** Over the commits that count, every place of the order is used once, and so every sample once an epoch. */
function assertLedger(sim: Simulation, seed: number): void {
  const bySteps = new Map<number, JournalEvent & { type: 'commit' }>();
  for (const { event } of sim.journal) if (event.type === 'commit') bySteps.set(event.step, event);
  const batch = sim.plan.microbatches * sim.plan.microbatchSize;
  for (let step = 1; step <= sim.plan.totalSteps; step++) {
    const commit = bySteps.get(step);
    // A loss of power may take the record of a step whose checkpoint is on disk.
    if (commit === undefined)
      assert.ok(Math.max(...sim.checkpoints) >= step, `seed ${seed}: step ${step} is missing`);
    else assert.deepEqual([commit.firstPosition, commit.numSamples], [(step - 1) * batch, batch]);
  }
}
