import * as tf from '@tensorflow/tfjs-core';

/** Runs `body` with tfjs's current backend switched; backends that are initialised switch at once. */
export function withBackend<T>(name: string, body: () => T): T {
  const before = tf.getBackend();
  if (before === name) return body();
  void tf.setBackend(name);
  try {
    return body();
  } finally {
    void tf.setBackend(before);
  }
}
