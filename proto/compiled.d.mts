/** The folder that holds the compiled sources, laid out as they are; compiles them where that is not done yet. */
export function compiledRoot(): string;
/** Where Node keeps what V8 makes of the programs in a folder. */
export function codeCacheOf(tree: string): string;
/**
 * The JavaScript of a module of ours, to be run as a process or a thread of its own.
 * @param source address of its `.ts`, relative to a module of ours
 */
export function compiled(source: URL): string;
