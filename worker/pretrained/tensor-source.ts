/** A tensor in this process's memory, row-major. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** Named tensors that are read one by one, so that a large file is never in memory as a whole. */
export interface TensorSource {
  /** For messages: a folder or file. */
  readonly place: string;
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** A tensor's values as float32, whatever they are stored as. */
  read(name: string): Promise<HostTensor>;
}

/** Tensors that are in memory. */
export function sourceOf(place: string, tensors: ReadonlyMap<string, HostTensor>): TensorSource {
  return {
    place,
    shapes: new Map([...tensors].map(([name, { shape }]) => [name, shape])),
    read: (name) => Promise.resolve(tensors.get(name)!),
  };
}
