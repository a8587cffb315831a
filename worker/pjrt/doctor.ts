import { fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { compiled } from '../../proto/compiled.mjs';
import { messageOf } from '../../proto/errors.ts';
import type { ProbeReply } from './doctor-probe.ts';
import { type Driver, type DriverNeed, driverProblem, findDriver } from './driver.ts';
import { findPlugin, listPlugins, PLUGINS, type PluginOptions } from './plugin.ts';

/** What `videoloom engine doctor` found out about a plugin. */
export interface Diagnosis {
  readonly plugin: string;
  /** The library that a run would use; undefined when it would have to be installed first. */
  readonly path: string | undefined;
  /** Whether an installed library still is the pinned one; undefined for one that the user named. */
  readonly isGenuine: boolean | undefined;
  /** The driver of the GPUs that the plugin is for, and these; undefined when it needs none. */
  readonly driver?: string;
  /** What the plugin answered, as far as it came. */
  readonly apiVersion?: string;
  readonly platform?: string;
  readonly devices?: readonly { readonly kind: string; readonly description: string }[];
  /** Whether a small matrix product came out right on the first device. */
  readonly computes: boolean;
  /** The number of devices, all or two of a CPU, whose sum over one another came out right; 1 where there is but one. */
  readonly devicesReduced?: number;
  /** One sentence about what is wrong and how to mend it; undefined when nothing is. */
  readonly problem: string | undefined;
}

/**
 * Finds out whether a plugin works, and if not why. The plugin is tried in a process of its own, as one without its
 * driver may end the process that loads it. Nothing is installed.
 * @throws PluginError PLUGIN_UNKNOWN
 */
export async function diagnosePlugin(
  options: PluginOptions & {
    readonly timeoutMs?: number;
    readonly signal?: AbortSignal;
    /** The system whose drivers are looked at. */
    readonly root?: string;
  },
): Promise<Diagnosis> {
  const listed = (await listPlugins(options)).find(({ name }) => name === options.name);
  const need = (options.specs ?? PLUGINS).find(({ name }) => name === options.name)?.needs?.driver;
  const driver = need && (await findDriver(need.vendor, options.root));
  const found = {
    plugin: options.name,
    isGenuine: undefined,
    ...(need === undefined ? {} : { driver: describe(need, driver) }),
    computes: false,
  };
  let path: string | undefined;
  try {
    path = await findPlugin(options);
  } catch (error) {
    return { ...found, path, problem: messageOf(error) };
  }
  if (path === undefined) {
    const problem =
      listed?.build === undefined
        ? `There is no ${options.name} plugin for this kind of machine: name a library in PJRT_PLUGIN_PATH.`
        : `The ${options.name} plugin is not installed: run \`videoloom engine install ${options.name}\`.`;
    return { ...found, path, problem: (need && driverProblem(need, driver)) ?? problem };
  }

  const pinned = path === listed?.path ? listed.build?.librarySha256 : undefined;
  const isGenuine = pinned === undefined ? undefined : (await sha256Of(path)) === pinned;
  if (isGenuine === false) {
    const problem = `${path} is damaged: delete it and run \`videoloom engine install ${options.name}\`.`;
    return { ...found, path, isGenuine, problem };
  }

  const reply = await probe(path, options);
  // What the plugin says of a driver that is not there or too old, if it says anything, is hard to read.
  const cause = need && driverProblem(need, driver);
  const problem =
    reply.problem === undefined
      ? undefined
      : (cause ?? (need && libraryProblem(reply.problem, options.name)) ?? reply.problem);
  return { ...found, ...reply, path, isGenuine, problem };
}

function describe({ vendor }: DriverNeed, driver: Driver | undefined): string {
  const name = vendor === 'nvidia' ? 'NVIDIA' : 'AMD';
  if (driver === undefined) return `no driver of ${name}`;
  const gpus = driver.gpus.length === 0 ? 'no GPU' : driver.gpus.join(', ');
  return `${name} ${driver.version ?? 'of unknown version'}: ${gpus}`;
}

/** That a library which the plugin loads is missing, if that is what the plugin complains about. */
export function libraryProblem(said: string, plugin: string): string | undefined {
  const library = /\blib\w+\.so[.\d]*(?=: cannot open shared object|.{0,40}not found)/i.exec(
    said,
  )?.[0];
  const isMissing =
    library ??
    /(?:unable|failed|could not) to load (\w*(?:cu|nv|nccl|hip|rocm)\w*)/i.exec(said)?.[1];
  if (isMissing === undefined) return undefined;
  return `The plugin does not find ${isMissing}: run \`videoloom engine install ${plugin} --with-libraries\`, or name its folder in LD_LIBRARY_PATH.`;
}

const DEFAULT_TIMEOUT_MS = 120_000;
const MAX_STDERR_CHARS = 2000;

function probe(
  path: string,
  options: { readonly timeoutMs?: number; readonly signal?: AbortSignal },
): Promise<ProbeReply> {
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  return new Promise((done, fail) => {
    const child = fork(compiled(new URL('doctor-probe.ts', import.meta.url)), {
      execArgv: [],
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      timeout: timeoutMs,
      killSignal: 'SIGKILL',
      ...(options.signal ? { signal: options.signal } : {}),
    });
    let reply: ProbeReply = { computes: false, problem: undefined };
    let stderr = '';
    child.stderr!.on('data', (chunk: Buffer) => {
      stderr = (stderr + chunk.toString('utf8')).slice(-MAX_STDERR_CHARS);
    });
    // The probe reports after every step, so that what it saw before a crash is known.
    child.on('message', (message) => {
      reply = message as ProbeReply;
    });
    child.on('error', fail);
    child.on('close', (exitCode, signal) => {
      if (exitCode === 0) {
        done(reply);
        return;
      }
      const how =
        signal === 'SIGKILL'
          ? `did not answer within ${timeoutMs} ms`
          : `ended its process (${signal ?? `exit code ${exitCode ?? '?'}`})`;
      const said = stderr.trimEnd().split('\n').at(-1) ?? '';
      done({ ...reply, problem: `The plugin ${path} ${how}${said && `: ${said}`}.` });
    });
    child.send({ pluginPath: path });
  });
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}
