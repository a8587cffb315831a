import type { PjrtExecutable } from '../pjrt/executable.ts';
import { normalSharding, partsOf, REPLICATED, shardingText } from '../stablehlo/sharding.ts';
import type { Mesh, ProgramShardings, Sharding } from '../stablehlo/sharding.ts';
import { SharedBuffer } from './data.ts';
import type { TensorSpec } from './dtypes.ts';
import { EngineError } from './errors.ts';

/** How the leaf with that path and shape is to be spread over the devices. */
export type Placement = (path: string, shape: readonly number[]) => Sharding;

/** Where the tensors of a compiled function lie. What is left out has a copy on every device. */
export interface CompileShardings {
  /** By argument; the paths are those inside of it. */
  readonly arguments?: readonly (Placement | undefined)[];
  readonly results?: Placement;
  /** Positions of the arguments by which operations are cut where shardings contradict, such as the batch. */
  readonly leading?: readonly number[];
}

type Leaf = readonly [path: string, tensor: { readonly shape: readonly number[] }];

/** The shardings of one function's leaves, checked. */
export class ProgramLayout {
  readonly mesh: Mesh;
  readonly #name: string;
  readonly #given: CompileShardings;

  constructor(mesh: Mesh, name: string, given: CompileShardings) {
    this.mesh = mesh;
    this.#name = name;
    this.#given = given;
  }

  /** Of the leaves of arguments, whose paths begin with the argument's position. @throws EngineError `XLA_SHARDING_INVALID` */
  of(args: readonly Leaf[], results: readonly Leaf[]): ProgramShardings {
    const { leading = [] } = this.#given;
    return {
      mesh: this.mesh,
      parameters: args.map(([path, { shape }]) => this.#argument(path, shape)),
      results: results.map(([path, { shape }]) =>
        this.#check(`result ${path}`, this.#given.results?.(path, shape), shape),
      ),
      leading: new Set(
        [...args.keys()].filter((at) => leading.includes(Number(args[at]![0].split('/', 1)[0]))),
      ),
    };
  }

  #argument(path: string, shape: readonly number[]): Sharding {
    const end = path.includes('/') ? path.indexOf('/') : path.length;
    const place = this.#given.arguments?.[Number(path.slice(0, end))];
    return this.#check(`argument ${path}`, place?.(path.slice(end + 1), shape), shape);
  }

  #check(what: string, sharding: Sharding = REPLICATED, shape: readonly number[]): Sharding {
    const invalid = (why: string): EngineError =>
      new EngineError(
        'XLA_SHARDING_INVALID',
        `${what} of ${this.#name} has shape [${shape.join()}] and sharding [${shardingText(sharding)}], but ${why}`,
      );
    const axes = sharding.flat();
    const unknown = axes.find((axis) => this.mesh[axis] === undefined);
    if (unknown !== undefined) {
      const known = Object.keys(this.mesh).join(', ');
      throw invalid(`the mesh has no axis ${unknown}: its axes are ${known}`);
    }
    if (new Set(axes).size < axes.length) throw invalid('one axis cuts a tensor once at most');
    if (sharding.length > shape.length) throw invalid('that is for more dimensions');
    for (const [dimension, parts] of partsOf(this.mesh, sharding, shape.length).entries()) {
      if (shape[dimension]! % parts === 0) continue;
      throw invalid(
        `dimension ${dimension} (${shape[dimension]!}) does not divide into ${parts} parts`,
      );
    }
    return normalSharding(this.mesh, sharding);
  }
}

/** Runs a program on all devices of its mesh; what `donate` lists is consumed. The results have a hold each. */
export async function executeSharded(
  executable: PjrtExecutable,
  { mesh, results: shardings }: ProgramShardings,
  results: readonly TensorSpec[],
  inputs: readonly SharedBuffer[],
  donate: readonly number[],
): Promise<SharedBuffer[]> {
  const lists = Array.from({ length: executable.numDevices }, (_, device) =>
    inputs.map(({ parts }) => parts[device]!),
  );
  const outputs = await executable.executeOnAll(lists, { donate });
  return results.map(({ shape }, index) => {
    const parts = outputs.map((ofDevice) => ofDevice[index]!);
    return new SharedBuffer({ mesh, sharding: shardings[index]!, shape, parts });
  });
}
