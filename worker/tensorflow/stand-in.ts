/** Folder of the package that stands for tfjs in an installation of tfjs-node. */
export const STAND_IN = 'tfjs-of-videoloom';

/** Under this the loader keeps the tfjs that the stand-in hands on; one a process, as tfjs's own registries are. */
export const TFJS_SYMBOL = 'videoloom.tfjs';

/** The module that tfjs-node gets for `@tensorflow/tfjs` and `@tensorflow/tfjs-core`. */
export function standInSource(): string {
  return `module.exports = globalThis[Symbol.for(${JSON.stringify(TFJS_SYMBOL)})];\n`;
}
