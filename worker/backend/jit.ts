import * as tf from '@tensorflow/tfjs-core';

import type { PjrtExecutable } from '../pjrt/executable.ts';
import { HloBuilder } from '../stablehlo/ops.ts';
import type { Donation, Value } from '../stablehlo/types.ts';
import { sameType } from '../stablehlo/types.ts';
import { SharedBuffer } from './data.ts';
import type { TensorData } from './data.ts';
import { dtypeOf, tensorTypeOf } from './dtypes.ts';
import type { HostValues, TensorSpec } from './dtypes.ts';
import { EngineError } from './errors.ts';

/** Host data with more elements becomes a hidden argument of the program instead of text in it. */
const MAX_INLINE_ELEMENTS = 64;

/** A program before it is compiled. */
export interface TracedProgram {
  readonly mlir: string;
  /** Of its products of matrices and convolutions. */
  readonly flops: number;
  readonly results: readonly TensorSpec[];
  /** Buffers that the function used without being given them; arguments after the declared ones. */
  readonly captures: readonly (SharedBuffer | Promise<SharedBuffer>)[];
}

/** The program that kernels emit into while a function is traced. */
export class Trace {
  readonly name: string;
  readonly hlo = new HloBuilder();
  readonly #upload: (values: HostValues, spec: TensorSpec) => SharedBuffer;
  readonly #captures: (SharedBuffer | Promise<SharedBuffer>)[] = [];
  readonly #captured = new Map<TensorData, Value>();

  constructor(name: string, upload: (values: HostValues, spec: TensorSpec) => SharedBuffer) {
    this.name = name;
    this.#upload = upload;
  }

  /** Declares the next argument of the program. */
  parameter(spec: TensorSpec): Value {
    return this.hlo.parameter(tensorTypeOf(spec));
  }

  /**
   * The value that stands for a tensor in this program: what a kernel computed, a constant, or a captured buffer.
   *
   * @throws EngineError `XLA_TENSOR_LEAKED` for a result of another trace.
   */
  valueOf(data: TensorData): Value {
    const { content } = data;
    if (content.kind === 'traced') {
      if (content.trace === this) return content.value;
      throw new EngineError(
        'XLA_TENSOR_LEAKED',
        `${this.name} uses a result of ${content.op} [${data.shape.join()}] that was kept from the trace of ` +
          `${content.trace.name}, where it never had a value. Return it from that function instead.`,
      );
    }
    let value = this.#captured.get(data);
    if (value === undefined) {
      value =
        content.kind === 'host' && isInline(content.values)
          ? this.hlo.constantArray(content.values, tensorTypeOf(data))
          : this.#capture(data);
      this.#captured.set(data, value);
    }
    return value;
  }

  /** Ends the trace. Arguments at `donated` may be overwritten by results of their shape and type, in order. */
  finish(results: readonly Value[], donated: readonly number[] = []): TracedProgram {
    return {
      mlir: this.hlo.print(this.name, results, donations(this.hlo.parameters, results, donated)),
      flops: this.hlo.flops(results),
      results: results.map(({ shape, elementType }) => ({ shape, dtype: dtypeOf(elementType) })),
      captures: this.#captures,
    };
  }

  /** Lets go of the captured buffers, where no program came of the trace. */
  abandon(): void {
    releaseCaptures(this.#captures);
  }

  #capture(data: TensorData): Value {
    const { content } = data;
    if (content.kind === 'host') this.#captures.push(this.#upload(content.values, data));
    if (content.kind === 'device') this.#captures.push(content.shared.retain());
    if (content.kind === 'pending') this.#captures.push(content.shared.then((s) => s.retain()));
    return this.hlo.parameter(tensorTypeOf(data));
  }
}

export function releaseCaptures(captures: TracedProgram['captures']): void {
  for (const capture of captures) {
    if (capture instanceof SharedBuffer) capture.release();
    else {
      // A failed upload is reported where the tensor is used.
      void capture.then(
        (shared) => {
          shared.release();
        },
        () => undefined,
      );
    }
  }
}

/** Splats and short arrays are printed; splats of any size, since they print as one number. */
function isInline(values: HostValues): boolean {
  if (values.length <= MAX_INLINE_ELEMENTS) return true;
  const [first] = values;
  return values.every((value) => Object.is(value, first));
}

/** Pairs each donated parameter with the first result of its type that is still free; the rest become donors. */
function donations(
  parameters: readonly Value[],
  results: readonly Value[],
  donated: readonly number[],
): (Donation | undefined)[] {
  const free = new Set(results.keys());
  const plan: (Donation | undefined)[] = parameters.map(() => undefined);
  for (const index of donated) {
    const parameter = parameters[index]!;
    const match = [...free].find((result) => sameType(results[result]!, parameter));
    if (match === undefined) plan[index] = 'donor';
    else {
      free.delete(match);
      plan[index] = { aliasOf: match };
    }
  }
  return plan;
}

/** A traced program with its executable, which may still be compiling. */
export class CompiledProgram {
  readonly traced: TracedProgram;
  readonly executable: Promise<PjrtExecutable>;
  #isClosed = false;

  constructor(traced: TracedProgram, executable: Promise<PjrtExecutable>) {
    this.traced = traced;
    this.executable = executable;
    // The failure is reported by each call.
    executable.catch(() => undefined);
  }

  /**
   * Runs the program on `inputs`, one hold each of which the call takes over; gives the results with a hold each.
   * Inputs at `donate` are consumed.
   */
  async run(
    inputs: readonly (SharedBuffer | Promise<SharedBuffer>)[],
    donate: readonly number[] = [],
  ): Promise<SharedBuffer[]> {
    const settled = await Promise.allSettled(inputs.map((input) => Promise.resolve(input)));
    const held = settled.flatMap((input) => (input.status === 'fulfilled' ? [input.value] : []));
    try {
      for (const input of settled) if (input.status === 'rejected') throw input.reason;
      const executable = await this.executable;
      const captures = await Promise.all(
        this.traced.captures.map((capture) => Promise.resolve(capture)),
      );
      const outputs = await executable.execute(
        [...held, ...captures].map((shared) => shared.buffer),
        { donate },
      );
      return outputs.map((buffer) => new SharedBuffer(buffer));
    } finally {
      for (const shared of held) shared.release();
    }
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    releaseCaptures(this.traced.captures);
    void this.executable.then(
      (executable) => {
        executable.close();
      },
      () => undefined,
    );
  }
}

/** What distinguishes one program of a function from another: paths, dtypes and shapes of the arguments' leaves. */
export function signatureOf(
  leaves: readonly (readonly [path: string, tensor: tf.Tensor])[],
): string {
  return leaves.map(([path, { dtype, shape }]) => `${path}:${dtype}[${shape.join()}]`).join(' ');
}
