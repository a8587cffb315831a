import { liveOperations, printProgram } from './print.ts';
import type { Operation, Region, TensorType } from './types.ts';

/** A product of matrices as a program of its own. */
export interface Product {
  readonly mlir: string;
  /** Of its arguments, which are the operands. */
  readonly operands: readonly TensorType[];
  readonly flops: number;
  /** How often the program that it is of computes one of these shapes. */
  readonly count: number;
}

/**
 * The products of matrices of a program, those of loops as often as they are computed. Convolutions and calls of a library
 * are not among them; of a program for several devices the shapes are those of all together.
 */
export function productsOf(region: Region): Product[] {
  const found = new Map<string, Product>();
  collect(liveOperations(region), 1, found);
  return [...found.values()];
}

function collect(
  operations: readonly Operation[],
  times: number,
  found: Map<string, Product>,
): void {
  for (const operation of operations) {
    const { name, flops = 0, regions } = operation;
    if (name === 'stablehlo.while') {
      const [, body] = regions;
      const once = body!.operations.reduce((sum, inner) => sum + (inner.flops ?? 0), 0);
      if (once > 0) collect(liveOperations(body!), (times * flops) / once, found);
    } else if (name === 'stablehlo.dot_general') {
      const mlir = alone(operation);
      const count = times + (found.get(mlir)?.count ?? 0);
      found.set(mlir, { mlir, operands: operation.operands, flops, count });
    }
  }
}

/** The same for equal shapes, whatever the values are called. */
function alone({ operands, results, ...operation }: Operation): string {
  const named = operands.map((operand, id) => ({ ...operand, id }));
  const made = results.map((result, k) => ({ ...result, id: operands.length + k }));
  const body = {
    parameters: named,
    operations: [{ ...operation, operands: named, results: made }],
    results: made,
  };
  return printProgram({ name: 'product', body, donations: [] });
}
