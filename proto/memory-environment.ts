/**
 * glibc settings for a process that trains on the CPU plugin. XLA asks malloc for a program's whole temporary memory
 * (hundreds of megabytes) at each run and frees it after. By default that is a fresh mapping every time, whose pages
 * the kernel clears one by one: a quarter of a training step's CPU time. With these, freed memory stays with the
 * process and lies in huge pages. They are read when a process starts, so whoever starts it sets them.
 * Source: gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html.
 */
const TUNABLES = [
  // Other arenas are limited to 64 MiB and map what is larger, whatever mmap_max says.
  'glibc.malloc.arena_max=1',
  'glibc.malloc.mmap_max=0',
  `glibc.malloc.trim_threshold=${2 ** 62}`,
  'glibc.malloc.hugetlb=1',
  // Memory for a program is cut out of a larger piece, and what a thread's cache keeps of the rest would leave the piece
  // too small for the next time: the process would hold a program's memory twice or more. No cost was seen on 2 cores.
  'glibc.malloc.tcache_count=0',
];

/** `environment` with the settings added to those that it has; other C libraries ignore them. */
export function withTrainingMemory(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const present = environment['GLIBC_TUNABLES'];
  const given = present === undefined || present === '' ? [] : present.split(':');
  const names = new Set(given.map((tunable) => tunable.split('=', 1)[0]));
  const added = TUNABLES.filter((tunable) => !names.has(tunable.split('=', 1)[0]));
  return { ...environment, GLIBC_TUNABLES: [...given, ...added].join(':') };
}

/** `environment` without them, for processes that a training one starts for other work. */
export function withoutTrainingMemory(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { GLIBC_TUNABLES: present, ...rest } = environment;
  const others = present?.split(':').filter((tunable) => !TUNABLES.includes(tunable)) ?? [];
  return others.length === 0 ? rest : { ...rest, GLIBC_TUNABLES: others.join(':') };
}

/** Whether a process with this environment has the settings, or its own in their place. */
export function hasTrainingMemory(environment: NodeJS.ProcessEnv): boolean {
  return withTrainingMemory(environment)['GLIBC_TUNABLES'] === environment['GLIBC_TUNABLES'];
}
