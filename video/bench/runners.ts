/** Ours and the peers behind one interface, so that they take turns in one run. */
import { execFile, spawn } from 'node:child_process';
import { readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { ensurePeer, TORCH, type Peer } from '../../worker/bench/peer-venv.ts';
import { openDecoderPool, type DecoderPool } from '../decode/decoder.ts';
import { cpuSeconds } from './cpu-seconds.ts';
import { FRAMES_PER_SECOND } from './films.ts';

/** Frames of one film, by their number. */
export interface Call {
  readonly path: string;
  readonly indices: readonly number[];
}

export interface Taken {
  readonly seconds: number;
  /** Of all threads and processes. */
  readonly cpuSeconds: number;
  /** Number of each frame that came back, by call. */
  readonly indices: readonly (readonly number[])[];
}

/** Somebody who decodes, on so many processes of one thread each. */
export interface Runner {
  readonly name: string;
  run(calls: readonly Call[]): Promise<Taken>;
  /** The frames of one call, RGB, [T, 224, 224, 3]. */
  frames(call: Call): Promise<Uint8Array>;
  close(): Promise<void>;
}

export const SIZE = 224;

const PACKAGES = [
  'torchcodec==0.13.0',
  ...[TORCH, 'numpy==2.4.6', 'av==18.1.0', 'decord==0.6.0'],
] as const satisfies Peer['packages'];
export const PEERS = ['torchcodec', 'decord', 'pyav'] as const;

/** One process alone stays on one core, with all its threads and, of ours, the process that takes the frames. */
export async function openOurs(numProcesses: number): Promise<Runner & { pool: DecoderPool }> {
  const pool = await openDecoderPool({ numProcesses });
  if (numProcesses === 1) await pin([process.pid, ...pool.pids]);
  const decode = ({ path, indices }: Call) =>
    pool.decode({
      ...{ path, width: SIZE, height: SIZE },
      timesSeconds: indices.map((index) => (index + 0.5) / FRAMES_PER_SECOND),
    });
  return {
    name: 'videoloom',
    pool,
    async run(calls) {
      const [started, cpu] = [performance.now(), cpuSeconds(pool.pids)];
      const decoded = await Promise.all(calls.map(decode));
      return {
        seconds: (performance.now() - started) / 1000,
        cpuSeconds: cpuSeconds(pool.pids) - cpu,
        indices: decoded.map(({ ptsSeconds }) => [...ptsSeconds].map(indexOf)),
      };
    },
    frames: async (call) => (await decode(call)).frames,
    close: async () => {
      await pool.close();
      if (numProcesses === 1) await pin([process.pid], 'all');
    },
  };
}

/** A Python library, in processes that wait for their turn. */
export async function openPeer(
  cacheDir: string,
  name: (typeof PEERS)[number],
  numProcesses: number,
): Promise<Runner> {
  const script = fileURLToPath(new URL('peers/decode.py', import.meta.url));
  const python = await ensurePeer(cacheDir, {
    ...{ label: name, packages: PACKAGES, script, args: [] },
  });
  const processes = Array.from({ length: numProcesses }, () => {
    const args = [script, name, ...(numProcesses === 1 ? ['0'] : [])];
    const child = spawn(python, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const ask = async (command: unknown): Promise<PeerAnswer> => {
      child.stdin.write(`${JSON.stringify(command)}\n`);
      const { value, done } = (await lines.next()) as IteratorResult<string, undefined>;
      if (done) throw new Error(`${name} ended`);
      return JSON.parse(value) as PeerAnswer;
    };
    return { child, ask };
  });
  return {
    name,
    async run(calls) {
      const started = performance.now();
      const answers = await Promise.all(
        processes.map(({ ask }, i) => {
          return ask({ calls: calls.filter((_, at) => at % numProcesses === i) });
        }),
      );
      return {
        seconds: (performance.now() - started) / 1000,
        cpuSeconds: answers.reduce((sum, answer) => sum + answer.cpuSeconds, 0),
        indices: calls.map((_, at) =>
          answers[at % numProcesses]!.pts[Math.floor(at / numProcesses)]!.map(indexOf),
        ),
      };
    },
    async frames(call) {
      const dump = join(tmpdir(), `videoloom-bench-${process.pid}-${name}.rgb`);
      await processes[0]!.ask({ calls: [call], dump });
      const frames = await readFile(dump);
      await rm(dump);
      return frames;
    },
    close: async () => {
      await Promise.all(
        processes.map(({ child }) => {
          child.stdin.end();
          return new Promise((resolve) => child.once('close', resolve));
        }),
      );
    },
  };
}

interface PeerAnswer {
  readonly cpuSeconds: number;
  readonly pts: readonly (readonly number[])[];
}

const indexOf = (seconds: number): number => Math.round(seconds * FRAMES_PER_SECOND);

async function pin(pids: readonly number[], core: '0' | 'all' = '0'): Promise<void> {
  const cores = core === 'all' ? '0-1023' : core;
  for (const pid of pids) await promisify(execFile)('taskset', ['-acp', cores, String(pid)]);
}
