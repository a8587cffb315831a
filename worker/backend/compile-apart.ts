import { fork } from 'node:child_process';

import { compiled } from '../../proto/compiled.mjs';
import type { XlaFlags } from '../pjrt/compile-options.ts';
import type { DeviceOptions } from './devices.ts';

/** What is to be compiled, and the file in the cache where it is to be. */
export interface CompileOrder {
  readonly devices: DeviceOptions;
  readonly flags: XlaFlags;
  readonly deviceIndices: readonly number[];
  readonly mlir: string;
  readonly folder: string;
  readonly file: string;
}

/**
 * Compiles into the cache, in a process of its own: a compiler takes hundreds of MiB and leaves the heap in pieces, in
 * which training then takes more memory and time. Gives whether the file is there; where it is not, the process has said
 * why on stderr.
 */
export function compileApart(order: CompileOrder): Promise<boolean> {
  return new Promise((done) => {
    const child = fork(compiled(new URL('compile-process.ts', import.meta.url)), {
      execArgv: [],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    child.on('error', () => {
      done(false);
    });
    child.on('close', (exitCode) => {
      done(exitCode === 0);
    });
    child.send(order, () => undefined); // one that is gone closes
  });
}
