/**
 * Clips a second through the decoder pool, and what its pipe carries. Run: node --import tsx video/bench/decode.ts
 * The first row is the one that torchcodec, PyAV and decord were measured on: 8 even frames at 224x224 out of 10 s of
 * 640x360 H.264 with a key frame every 50 frames. Each row is the best of three rounds;
 * the CPU time of the decoder processes is also worth reading on a machine that does other work.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { openDecoderPool, type DecoderPool } from '../decoder.ts';
import { evenTimes } from '../frame-sampler.ts';
import { ffmpeg, makeFilm, realFilms, scratchFolder } from '../test/films.ts';

interface Row {
  readonly name: string;
  readonly path: string;
  readonly seconds: number;
  readonly numFrames: number;
  readonly size: number;
  readonly numClips: number;
}

const { folder, remove } = await scratchFolder();
try {
  const films = await realFilms();
  const real = join(folder, 'real.mp4');
  if ('folder' in films) {
    const source = ['-i', join(films.folder, 'bikes.mp4'), '-t', '10', '-vf', 'scale=640:360'];
    await ffmpeg(...source, '-an', '-c:v', 'libx264', '-g', '50', '-crf', '23', real);
  } else
    await makeFilm(real, { seconds: 10, size: '640x360', args: ['-c:v', 'libx264', '-g', '50'] });
  const small = join(folder, 'small.mp4');
  await makeFilm(small, { seconds: 6, size: '128x128', args: ['-c:v', 'libx264'] });
  const rows: Row[] = [
    {
      name: '8 frames 224x224 of 10 s 640x360',
      path: real,
      seconds: 10,
      numFrames: 8,
      size: 224,
      numClips: 40,
    },
    {
      name: '16 frames 32x32 of 6 s 128x128',
      path: small,
      seconds: 6,
      numFrames: 16,
      size: 32,
      numClips: 120,
    },
    {
      name: 'pipe: 100 equal frames 640x640',
      path: small,
      seconds: 0,
      numFrames: 100,
      size: 640,
      numClips: 2,
    },
  ];
  for (const backend of ['node-av', 'ffmpeg'] as const) {
    for (const numProcesses of [1, 2]) {
      const pool = await openDecoderPool({ numProcesses, backend });
      for (const row of rows) await measure(pool, row, numProcesses);
      await pool.close();
    }
  }
} finally {
  await remove();
}

async function measure(pool: DecoderPool, row: Row, numProcesses: number): Promise<void> {
  const { name, path, seconds, numFrames, size } = row;
  const numClips = pool.backend === 'ffmpeg' ? Math.ceil(row.numClips / 10) : row.numClips;
  const request = {
    path,
    timesSeconds: evenTimes(0, seconds, numFrames),
    width: size,
    height: size,
  };
  await pool.decode(request);
  let best = Infinity;
  const { numDecoded } = pool.stats;
  const cpuBefore = cpuSeconds(pool);
  for (let round = 0; round < 3; round++) {
    const started = performance.now();
    await Promise.all(Array.from({ length: numClips }, () => pool.decode(request)));
    best = Math.min(best, (performance.now() - started) / 1000);
  }
  const cpuMs = ((cpuSeconds(pool) - cpuBefore) * 1000) / (3 * numClips);
  const mebibytes = (numClips * numFrames * size * size * 3) / 2 ** 20;
  const decoded = (pool.stats.numDecoded - numDecoded) / (3 * numClips);
  const figures = [
    { metric: 'throughput, best', value: numClips / best, unit: 'clips/s' },
    { metric: 'CPU time a clip', value: cpuMs, unit: 'ms' },
    { metric: 'frames to the worker', value: mebibytes / best, unit: 'MiB/s' },
    { metric: 'frames decoded a clip', value: decoded, unit: 'frames' },
  ];
  for (const { metric, value, unit } of figures) {
    const processes = `${numProcesses} process${numProcesses === 1 ? '' : 'es'}`;
    const figure = { name: `decode/${pool.backend}, ${processes}, ${name}`, metric };
    const rounded = Number(value.toPrecision(4));
    process.stdout.write(`${JSON.stringify({ ...figure, value: rounded, unit })}\n`);
  }
}

/** CPU time of the pool's processes and of those they started and saw end; 0 where there is no /proc. */
function cpuSeconds(pool: DecoderPool): number {
  try {
    return pool.pids
      .map((pid) => readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' '))
      .reduce(
        (sum, fields) =>
          sum + [11, 12, 13, 14].reduce((ticks, i) => ticks + Number(fields[i]), 0) / 100,
        0,
      );
  } catch {
    return 0;
  }
}
