import * as tf from '@tensorflow/tfjs-core';

import { leavesOf, withLeaves } from '../tree.ts';
import type { TensorTree } from '../tree.ts';
import { withBackend } from './current-backend.ts';
import { dtypeOfArray, hostValues } from './dtypes.ts';
import type { CompileOptions, Engine, EngineName } from './engine.ts';

/**
 * An engine that runs functions op by op on the tfjs backend that is registered as `name`. `compile` compiles nothing;
 * what its functions take, give and dispose is as with a compiled one.
 */
export function eagerEngine({
  name,
  platform,
}: {
  readonly name: Exclude<EngineName, 'xla'>;
  readonly platform: string;
}): Engine {
  return {
    name,
    platform,
    mesh: {},
    upload(data, shape, dtype = dtypeOfArray(data)) {
      const values = hostValues(data, dtype).slice();
      return withBackend(name, () => tf.tensor(values, [...shape], dtype));
    },
    compile<A extends readonly TensorTree[], R extends TensorTree>(
      fn: (...args: A) => R,
      { donate = [] }: CompileOptions,
    ) {
      const call = (...args: A) => {
        const given = leavesOf(args as TensorTree).map(([, tensor]) => tensor);
        const results = withBackend(name, () =>
          tf.tidy(() => {
            const made = fn(...args);
            const leaves = leavesOf(made).map(([, tensor]) =>
              given.includes(tensor) ? tf.clone(tensor) : tensor,
            );
            return withLeaves(made, leaves) as tf.TensorContainer;
          }),
        ) as R;
        for (const index of donate) {
          for (const [, tensor] of leavesOf(args[index] as TensorTree)) tensor.dispose();
        }
        return Promise.resolve(results);
      };
      return Object.assign(call, {
        lower: () => Promise.resolve(undefined),
        trace: () => undefined,
        close() {
          // There are no programs.
        },
      });
    },
    addressOf: () => Promise.resolve(undefined),
    close() {
      // The backend holds nothing beyond its tensors.
    },
  };
}
