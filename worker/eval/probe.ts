/** Temporal probes: the held-out figures again for clips whose frames are fewer or in another order. */
import { setMaxListeners } from 'node:events';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { parameterShardings, rowSharding } from '../parallel/sharding.ts';
import { compilePrograms } from '../programs.ts';
import type { Run } from '../run.ts';
import { changedRow, FRAME_CHANGES, type FrameChange } from '../systems/frame-changes.ts';
import type { HeldOutTask, Row, VideoLanguageSystem } from '../systems/system.ts';
import type { TrainedRun } from '../trained-run.ts';
import { leavesOf } from '../tree.ts';
import { evaluateHeldOut } from './held-out.ts';

/** What is done to clips; a model that looks at time loses by it, one that looks at pictures does not. */
export const PROBES = ['single', 'shuffled', 'reversed'] as const satisfies readonly FrameChange[];
export type Probe = (typeof PROBES)[number];

export interface Probed {
  /** Of the held-out task. */
  readonly name: string;
  readonly chance: number;
  /** Number of held-out predictions behind each. */
  readonly count: number;
  readonly full: number;
  readonly probes: Readonly<Record<Probe, number>>;
}

/**
 * Every held-out figure of a trained run for whole clips and for each of {@link PROBES}. The same clips, questions, masks
 * and answers each time: only the frames that are shown change.
 */
export async function probe(trained: TrainedRun, signal: AbortSignal): Promise<Probed[]> {
  const { run } = trained;
  setMaxListeners(0, signal);
  const { heldOutTasks, furtherTasks = [], writtenTasks = [] } = run.system;
  const tasks = [...heldOutTasks, ...furtherTasks].filter(({ name }) => !isChanged(name));
  const full = await figuresWith(trained, { ...run.system, heldOutTasks: tasks }, signal);
  const changed = new Map<Probe, Figure[]>();
  for (const change of PROBES) {
    const system = {
      ...run.system,
      heldOutTasks: tasks.map((task) => asked(task, change, run)),
      writtenTasks: writtenTasks.map((task) => ({
        ...task,
        assemble: (rows: readonly Row[]) => task.assemble(rows.map(changedBy(change, run))),
      })),
    };
    changed.set(change, await figuresWith(trained, system, signal));
  }
  return full.map(({ name, chance, count, value }, i) => ({
    ...{ name, chance, count, full: value },
    probes: Object.fromEntries(
      PROBES.map((change) => [change, changed.get(change)![i]!.value]),
    ) as Record<Probe, number>,
  }));
}

/** Some systems have figures of changed clips of their own. */
function isChanged(name: string): boolean {
  return FRAME_CHANGES.some((change) => name.endsWith(`, ${change}`));
}

/** A changed clip. A sample of its own: what a system remembers of one is of the unchanged clip. */
function changedBy(change: FrameChange, { config }: Run): (row: Row) => Row {
  const options = { frameSize: config.data.frameSize, seed: config.train.seed };
  return (row) => {
    const own = changedRow(row, change, options);
    return { ...own, sample: { ...own.sample } };
  };
}

/** A task whose clips are changed. */
function asked(task: HeldOutTask, change: FrameChange, run: Run): HeldOutTask {
  return {
    ...task,
    assemble: (rows) => {
      const batch = task.assemble(rows.map(changedBy(change, run)));
      if (task.frameAnswers === undefined) return batch;
      const { arrays } = task.assemble(rows);
      const answers = task.frameAnswers.map((name) => [name, arrays[name]!] as const);
      return { ...batch, arrays: { ...batch.arrays, ...Object.fromEntries(answers) } };
    },
  };
}

function figuresWith(
  { run, engine, step, params, frozen }: TrainedRun,
  system: VideoLanguageSystem,
  signal: AbortSignal,
): Promise<Figure[]> {
  const { config } = run;
  const programs = compilePrograms(engine, system, config.optimizer, {
    parameters: parameterShardings(engine.mesh, config.parallel, leavesOf(params)),
    rows: rowSharding(engine.mesh),
  });
  return evaluateHeldOut(
    {
      ...{ run: { ...run, system }, engine, programs, frozen, step, signal },
      microbatchSize: config.train.microbatchSize,
      collectives: { allGather: (_step, _name, own) => Promise.resolve([own]) },
      rank: 0,
      worldSize: 1,
    },
    params,
  );
}

/** The figures as a table, and what time is worth: how much the whole clip is above one frame and above shuffled ones. */
export function probeTable(probed: readonly Probed[]): string {
  const width = Math.max(...probed.map(({ name }) => name.length), 8);
  const header = ['full', ...PROBES, 'chance', 'n', 'gain', 'order'];
  const lines = probed.map(({ name, full, probes, chance, count }) => {
    const gain = full - probes.single;
    const order = full - probes.shuffled;
    const numbers = [full, ...PROBES.map((change) => probes[change]), chance];
    const cells = [
      ...numbers.map((value) => value.toFixed(3)),
      String(count),
      gain.toFixed(3),
      order.toFixed(3),
    ];
    return [name.padEnd(width), ...cells.map((cell) => cell.padStart(9))].join('');
  });
  return [['held-out'.padEnd(width), ...header.map((cell) => cell.padStart(9))].join(''), ...lines]
    .map((line) => `${line}\n`)
    .join('');
}
