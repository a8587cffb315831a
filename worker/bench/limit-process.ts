/** The products of limit.ts on command, as the peers run their steps: `limit-process.ts PRECISION CACHE`. */
import { createInterface } from 'node:readline';

import { openEngine } from '../backend/engine.ts';
import type { Precision } from '../backend/jit.ts';
import { openProducts } from './limit.ts';

const [precision, cacheDir] = process.argv.slice(2) as [Precision, string];
const engine = await openEngine({ engine: 'xla', cacheDir, precision });
const products = openProducts(engine);
for await (const line of createInterface({ input: process.stdin })) {
  const { seconds } = await products.steps(Number(line.split(' ')[1]));
  process.stdout.write(`${JSON.stringify({ seconds, cpu_seconds: 0, peak_bytes: 0 })}\n`);
}
engine.close();
