import type { PjrtExecutable } from '../pjrt/executable.ts';
import type { TensorSpec } from './dtypes.ts';
import type { TracedProgram } from './jit.ts';

/** A single op, compiled for its shapes. */
export interface EagerProgram {
  readonly executable: PjrtExecutable;
  readonly results: readonly TensorSpec[];
}

/** Programs that are kept; the least recently used goes first. */
const MAX_PROGRAMS = 1024;

/** The programs of ops that run one at a time, outside of compiled functions. They are closed with the client. */
export class EagerPrograms {
  readonly #compile: (mlir: string) => PjrtExecutable;
  readonly #programs = new Map<string, EagerProgram>();

  constructor(compile: (mlir: string) => PjrtExecutable) {
    this.#compile = compile;
  }

  /** The program for `key`, traced and compiled at its first use. @throws PjrtError `PJRT_COMPILE_FAILED` */
  get(key: string, trace: () => TracedProgram): EagerProgram {
    let program = this.#programs.get(key);
    if (program === undefined) {
      const { mlir, results } = trace();
      program = { executable: this.#compile(mlir), results };
    }
    this.#programs.delete(key);
    this.#programs.set(key, program);
    const [oldest] = this.#programs.keys();
    if (this.#programs.size > MAX_PROGRAMS && oldest !== undefined) {
      this.#programs.get(oldest)?.executable.close();
      this.#programs.delete(oldest);
    }
    return program;
  }
}
