import { fork } from 'node:child_process';

import { compiled } from '../../proto/compiled.mjs';
import { withoutTrainingMemory } from '../../proto/memory-environment.ts';
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

/** `not stored`: it compiled, and the cache cannot be written. */
export type CompileReply = 'stored' | 'not stored' | 'failed';

/**
 * Compiles into the cache, in a process of its own: a compiler takes hundreds of MiB and leaves the heap in pieces, in
 * which training then takes more memory and time. It says nothing of why it failed: whoever compiles the program after it
 * learns that.
 */
export function compileApart(order: CompileOrder): Promise<CompileReply> {
  return new Promise<CompileReply>((done) => {
    const child = fork(compiled(new URL('compile-process.ts', import.meta.url)), {
      execArgv: [],
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      env: withoutTrainingMemory(process.env),
      // A terminal's Ctrl-C is not for it: it ends with this process.
      detached: true,
    });
    child.on('message', (reply) => {
      done(reply as CompileReply);
    });
    child.on('error', () => {
      done('failed');
    });
    child.on('close', () => {
      done('failed');
    });
    child.send(order, () => undefined); // one that is gone closes
  }).catch((): CompileReply => 'failed'); // no process can be started
}
