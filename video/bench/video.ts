/**
 * `npm run bench:video`: decoding beside torchcodec, decord and PyAV, by turns in one run at equal cores. Each figure is
 * a JSON line, a table closes the run. On a shared machine trust the CPU time: wall-clock time holds what others took.
 *
 * `--rounds N` (5), `--only decode,clips,memory`, `--cache FOLDER`.
 */
import { readFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { median, report } from '../../worker/bench/report.ts';
import { openDecoderPool } from '../decode/decoder.ts';
import { evenTimes } from '../sampling/frame-sampler.ts';
import { makeFilm } from '../test/films.ts';
import { FILM_KINDS, FILM_SECONDS, filmsOf, FRAMES_PER_SECOND, kindName } from './films.ts';
import { openOurs, openPeer, PEERS, SIZE, type Call, type Runner } from './runners.ts';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    only: { type: 'string', default: 'decode,clips,memory' },
    cache: { type: 'string', default: join(userCacheDir(process.env), 'bench') },
  },
});
const rounds = Number(flags.rounds);
const parts = new Set(flags.only.split(','));
const FRAMES_PER_CLIP = 8;
/** For the rate of several clips out of one file. */
const CLIPS_PER_FILE = 6;
const CLIP_SECONDS = 4;

/** Rows of the closing table. */
const table: string[][] = [];

if (parts.has('decode')) for (const numProcesses of [1, 2]) await benchDecode(numProcesses);
if (parts.has('clips')) await benchClips();
if (parts.has('memory')) await benchMemory();
printTable();

/** One clip of each film, its file opened for it. */
async function benchDecode(numProcesses: number): Promise<void> {
  const runners = await openRunners(numProcesses);
  try {
    const indices = indicesOf(evenTimes(0, FILM_SECONDS, FRAMES_PER_CLIP));
    for (const kind of FILM_KINDS) {
      const films = await filmsOf(flags.cache, kind);
      // Every process gets both films, or what one has to do is not what the other has.
      const calls = films.flatMap((path) =>
        Array.from({ length: numProcesses }, () => ({ path, indices })),
      );
      if (numProcesses === 1) await checkPixels(runners, calls[0]!);
      const name = `decode/${numProcesses} process${numProcesses > 1 ? 'es' : ''}/${kindName(kind)}`;
      await takeTurns(name, runners, calls, calls.length);
    }
  } finally {
    await Promise.all(runners.map((runner) => runner.close()));
  }
}

/** Several overlapping clips of each film: by us in one request, by the peers as they like best. */
async function benchClips(): Promise<void> {
  const runners = await openRunners(1);
  try {
    const starts = Array.from(
      { length: CLIPS_PER_FILE },
      (_, i) => (i * (FILM_SECONDS - CLIP_SECONDS)) / (CLIPS_PER_FILE - 1),
    );
    const clips = starts.map((start) =>
      indicesOf(evenTimes(start, start + CLIP_SECONDS, FRAMES_PER_CLIP)),
    );
    const all = clips.flat().sort((a, b) => a - b);
    for (const kind of FILM_KINDS) {
      const films = await filmsOf(flags.cache, kind);
      const together = films.map((path) => ({ path, indices: all }));
      const apart = films.flatMap((path) => clips.map((indices) => ({ path, indices })));
      const numClips = apart.length;
      const name = `${CLIPS_PER_FILE} clips of a film/${kindName(kind)}`;
      await takeTurns(`${name}/all at once`, runners, together, numClips);
      const [ours, ...peers] = runners;
      await takeTurns(
        `${name}/peers open it for each`,
        [ours!, ...peers],
        together,
        numClips,
        apart,
      );
    }
  } finally {
    await Promise.all(runners.map((runner) => runner.close()));
  }
}

/** Peak and slope of memory over 2,000 clips of films that differ in size and length. */
async function benchMemory(): Promise<void> {
  const NUM_CLIPS = 2000;
  const folder = await temporaryFolder('video');
  const pool = await openDecoderPool({ numProcesses: 1 });
  try {
    const films: string[] = [];
    for (let i = 0; i < 8; i++) {
      const size = `${128 + 32 * i}x${96 + 16 * (i % 3)}`;
      const args = ['-c:v', 'libx264', '-preset', 'veryfast', '-g', String(12 + 20 * i)];
      films.push(await makeFilm(join(folder, `${i}.mp4`), { seconds: 3, size, args }));
    }
    const samples: { ours: number; decoder: number }[] = [];
    for (let clip = 0; clip < NUM_CLIPS; clip++) {
      await pool.decode({
        ...{ path: films[clip % films.length]!, width: SIZE, height: SIZE },
        timesSeconds: evenTimes(0, 3, FRAMES_PER_CLIP),
      });
      if (clip % 100 !== 99) continue;
      samples.push({ ours: residentMiB(process.pid), decoder: residentMiB(pool.pids[0]!) });
    }
    for (const [name, of] of [
      ['decoder process', 'decoder'],
      ['process that takes the frames', 'ours'],
    ] as const) {
      const values = samples.map((sample) => sample[of]);
      const half = values.length / 2;
      const growth = median(values.slice(half)) - median(values.slice(2, half));
      const figure = { name: `memory over ${NUM_CLIPS} clips/${name}`, unit: 'MiB' } as const;
      report({ ...figure, metric: 'resident, largest', value: Math.max(...values) });
      report({ ...figure, metric: 'second half above the first, median', value: growth });
      const [largest, more] = [Math.max(...values).toFixed(0), growth.toFixed(1)];
      table.push([figure.name, `${largest} MiB`, `${more} MiB from first to second half`, '']);
    }
  } finally {
    await pool.close();
  }
}

async function openRunners(numProcesses: number): Promise<Runner[]> {
  const peers = await Promise.all(PEERS.map((name) => openPeer(flags.cache, name, numProcesses)));
  return [await openOurs(numProcesses), ...peers];
}

/** Who runs first changes from round to round. */
async function takeTurns(
  name: string,
  runners: readonly Runner[],
  calls: readonly Call[],
  numClips: number,
  peerCalls: readonly Call[] = calls,
): Promise<void> {
  const callsOf = (runner: Runner): readonly Call[] => (runner === runners[0] ? calls : peerCalls);
  const taken = new Map(runners.map((runner): [Runner, Times] => [runner, { wall: [], cpu: [] }]));
  for (const runner of runners) {
    const { indices } = await runner.run(callsOf(runner)); // the first time warms up
    const wanted = callsOf(runner).map((call) => call.indices);
    if (JSON.stringify(indices) !== JSON.stringify(wanted)) {
      throw new Error(`${runner.name} gave frames ${indices.join('; ')}, not ${wanted.join('; ')}`);
    }
  }
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < runners.length; turn++) {
      const runner = runners[(turn + round) % runners.length]!;
      const { seconds, cpuSeconds } = await runner.run(callsOf(runner));
      taken.get(runner)!.wall.push(seconds);
      taken.get(runner)!.cpu.push(cpuSeconds);
    }
  }
  const peers = runners.slice(1);
  const show = (metric: string, unit: string, valueOf: (times: Times) => number): number[] => {
    const values = runners.map((runner) => valueOf(taken.get(runner)!));
    const better = unit === 'clips/s' ? 'higher' : 'lower';
    report(
      { name, metric, value: values[0]!, unit, better },
      peers.map((peer, i) => ({ name: peer.name, value: values[i + 1]! })),
    );
    return values;
  };
  const cpuMs = (pick: (values: number[]) => number) => (times: Times) =>
    (pick(times.cpu) / numClips) * 1000;
  const least = (values: number[]): number => Math.min(...values);
  const [ours = 0, ...theirs] = show('CPU time a clip, least', 'ms', cpuMs(least));
  const [middle = 0, ...middles] = show('CPU time a clip, median', 'ms', cpuMs(median));
  const rates = show('clips, best', 'clips/s', ({ wall }) => numClips / least(wall));
  report({ name, metric: 'load of the machine', value: loadavg()[0]!, unit: 'processes' });
  const best = Math.min(...theirs);
  table.push([
    ...[
      name,
      `${ours.toFixed(1)} ms`,
      `${best.toFixed(1)} ms ${peers[theirs.indexOf(best)]!.name}`,
    ],
    `${(best / ours).toFixed(2)} (median ${(Math.min(...middles) / middle).toFixed(2)}, ` +
      `rate ${(rates[0]! / Math.max(...rates.slice(1))).toFixed(2)})`,
  ]);
}

interface Times {
  readonly wall: number[];
  readonly cpu: number[];
}

/** The frames' pixels: resize filters differ a little, other frames differ a lot. */
async function checkPixels(runners: readonly Runner[], call: Call): Promise<void> {
  const [ours, ...theirs] = await Promise.all(runners.map((runner) => runner.frames(call)));
  for (const [i, frames] of theirs.entries()) {
    let difference = 0;
    for (const [at, value] of ours!.entries()) difference += Math.abs(value - frames[at]!);
    difference /= ours!.length;
    if (frames.length !== ours!.length || difference > 4) {
      throw new Error(`${runners[i + 1]!.name} differs by ${difference} of 255 on ${call.path}`);
    }
  }
}

function indicesOf(timesSeconds: readonly number[]): number[] {
  return timesSeconds.map((seconds) => Math.floor(seconds * FRAMES_PER_SECOND));
}

function residentMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) / 1024;
}

function printTable(): void {
  const rows = [['', 'videoloom', 'best peer', 'ratio of CPU time'], ...table];
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  for (const row of rows) {
    const cells = row.map((cell, i) => cell.padEnd(widths[i]!));
    process.stdout.write(`${cells.join('  ').trimEnd()}\n`);
  }
}
