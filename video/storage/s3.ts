import type {
  GetObjectCommandOutput,
  ListObjectsV2CommandOutput,
  S3Client,
} from '@aws-sdk/client-s3';
import type { Readable } from 'node:stream';
import { checkUrl, refused, type UrlPolicy } from './allowed.ts';
import { checkPath, comparePaths, isHidden, redactUrl } from './paths.ts';
import { remoteStore, withStallLimit, type RemoteFiles, type RemoteOptions } from './remote.ts';
import { retrying } from './retry.ts';
import { fileChanged, StorageError, type Store, type StoredFile } from './store.ts';

/** The allow list, if any, is of buckets. The endpoint is the operator's own: its address may be private. */
export type S3Options = Pick<UrlPolicy, 'hosts'> & RemoteOptions;

/**
 * The objects below `s3://bucket/prefix`. Credentials, region and endpoint come from where the AWS SDK looks for them:
 * the environment, `~/.aws`, the instance's or pod's role; `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` names another
 * server than Amazon's, and its buckets are then addressed by path. The SDK is loaded on first use.
 * @throws StorageError URL_REFUSED
 */
export function openS3Store(root: string, options: S3Options = {}): Store {
  const { bucket, key } = parseS3Url(root, options);
  const prefix = key === '' || key.endsWith('/') ? key : `${key}/`;
  return s3Store(redactUrl(root), { bucket, prefix }, options, (path) => ({
    bucket,
    key: prefix + checkPath(path),
  }));
}

/**
 * All buckets as a store, whose paths are whole `s3://` URLs.
 * @throws StorageError URL_REFUSED on use
 */
export function openS3UrlStore(options: S3Options = {}): Store {
  return s3Store('s3://', undefined, options, (location) => parseS3Url(location, options));
}

/** Where an object is. */
export interface S3Place {
  readonly bucket: string;
  readonly key: string;
}

function s3Store(
  root: string,
  folder: { readonly bucket: string; readonly prefix: string } | undefined,
  options: S3Options,
  locate: (path: string) => S3Place,
): Store {
  let opened: Promise<S3> | undefined;
  const client = (): Promise<S3> => (opened ??= openClient());
  const files: RemoteFiles = {
    describe: (path) => shown(locate(path)),
    async head(path, signal) {
      const { bucket, key } = locate(path);
      const { sdk, s3 } = await client();
      const command = new sdk.HeadObjectCommand({ Bucket: bucket, Key: key });
      const answer = await attempt({ bucket, key }, () =>
        s3.send(command, { abortSignal: signal }),
      );
      return { sizeBytes: answer.ContentLength!, version: answer.ETag ?? '' };
    },
    async get(path, { offset, sizeBytes, version, signal }) {
      const { bucket, key } = locate(path);
      const { sdk, s3 } = await client();
      const isPart = offset > 0 || sizeBytes !== undefined;
      const end = sizeBytes === undefined ? '' : offset + sizeBytes - 1;
      const command = new sdk.GetObjectCommand({
        Bucket: bucket,
        Key: key,
        ...(isPart ? { Range: `bytes=${offset}-${end}` } : {}),
        ...(version === undefined ? {} : { IfMatch: version }),
      });
      const answer = await attempt({ bucket, key }, () =>
        s3.send(command, { abortSignal: signal }),
      );
      return {
        body: answer.Body as Readable,
        from: offset,
        sizeBytes: totalOf(answer),
        version: answer.ETag ?? '',
      };
    },
  };
  return {
    root,
    async *list(signal) {
      if (folder === undefined)
        throw new StorageError('STORE_UNLISTABLE', `${root} cannot be listed: name a bucket`);
      const found: StoredFile[] = [];
      let token: string | undefined;
      do {
        const page = await listPage(await client(), folder, token, { ...options, signal });
        for (const { Key = '', Size = 0 } of page.Contents ?? []) {
          const path = Key.slice(folder.prefix.length);
          // A key that ends in `/` stands for a folder.
          if (path !== '' && !path.endsWith('/') && !isHidden(path))
            found.push({ path, sizeBytes: Size });
        }
        token = page.NextContinuationToken;
      } while (token !== undefined);
      // Servers list by the bytes of UTF-8, directory buckets in no order at all.
      yield* found.sort(comparePaths);
    },
    ...remoteStore(files, options),
  };
}

/** The SDK, which is loaded on first use, and a client. */
export interface S3 {
  readonly sdk: typeof import('@aws-sdk/client-s3');
  readonly s3: S3Client;
}

/** A client that finds its server and its credentials by itself, as {@link openS3Store} says. */
export async function openClient(): Promise<S3> {
  // Node 20 is supported here whatever the SDK plans; its warning would stand in the middle of a progress line.
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] ??= 'true';
  const sdk = await import('@aws-sdk/client-s3');
  // The SDK reads the same variables itself; that an endpoint of one's own knows no bucket names as hosts it cannot tell.
  const endpoint = process.env['AWS_ENDPOINT_URL_S3'] ?? process.env['AWS_ENDPOINT_URL'];
  const region = process.env['AWS_REGION'] ?? process.env['AWS_DEFAULT_REGION'];
  const s3 = new sdk.S3Client({
    maxAttempts: 1, // the store makes the attempts
    followRegionRedirects: true,
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED', // other servers than Amazon's answer these with errors
    ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    ...(endpoint !== undefined && region === undefined ? { region: 'us-east-1' } : {}),
  });
  return { sdk, s3 };
}

function listPage(
  { sdk, s3 }: S3,
  { bucket, prefix }: { readonly bucket: string; readonly prefix: string },
  token: string | undefined,
  options: RemoteOptions & { readonly signal: AbortSignal | undefined },
): Promise<ListObjectsV2CommandOutput> {
  const place = { bucket, key: prefix };
  const command = new sdk.ListObjectsV2Command({
    Bucket: bucket,
    Prefix: prefix,
    ContinuationToken: token,
  });
  return retrying(shown(place), options, () =>
    withStallLimit(shown(place), options, (limit) =>
      limit.waitFor(() => attempt(place, () => s3.send(command, { abortSignal: limit.signal }))),
    ),
  );
}

/** Of the whole object. */
function totalOf({ ContentRange, ContentLength }: GetObjectCommandOutput): number | undefined {
  if (ContentRange === undefined) return ContentLength;
  const [, total] = /\/(\d+)$/.exec(ContentRange) ?? [];
  return total === undefined ? undefined : Number(total);
}

/** @throws StorageError URL_REFUSED */
export function parseS3Url(location: string, options: S3Options): S3Place {
  checkUrl(location, options);
  // No `URL`: keys are taken as they are written, `%`, `?` and `#` included.
  const [, bucket, key = ''] = /^s3:\/\/([^/]+)(?:\/(.*))?$/is.exec(location) ?? [];
  if (bucket === undefined || !/^[a-z0-9][a-z0-9._-]*$/i.test(bucket))
    throw refused(location, 'is no s3://bucket/key: correct it');
  return { bucket, key };
}

/** One call; what it fails with says whether another one is worth while. @throws StorageError */
export async function attempt<T>(place: S3Place, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw s3Error(place, error as S3Failure);
  }
}

type S3Failure = Error & {
  readonly code?: string;
  readonly $metadata?: { readonly httpStatusCode?: number; readonly requestId?: string };
};

/** The SDK's errors hold access keys and what was signed: of them goes on what is named here alone. */
function s3Error(place: S3Place, { name, code, message, $metadata }: S3Failure): unknown {
  const what = shown(place);
  const status = $metadata?.httpStatusCode;
  const said = [
    name,
    code,
    status === undefined ? undefined : `HTTP ${status}`,
    $metadata?.requestId,
  ];
  const cause = new Error(said.filter((part) => part !== undefined).join(', '));
  if (name === 'AbortError') return Object.assign(cause, { name });
  if (NO_CREDENTIALS.has(name)) {
    return new StorageError(
      'S3_NO_CREDENTIALS',
      `${what}: there are no AWS credentials that hold (${name}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ` +
        'AWS_PROFILE, or run where there is a role; read a public bucket by its https:// address.',
      { cause },
    );
  }
  if (/region is missing/i.test(message)) {
    return new StorageError(
      'S3_NO_REGION',
      `${what}: nothing says in which region the bucket is. Set AWS_REGION.`,
      { cause },
    );
  }
  if (name === 'NoSuchBucket') {
    return new StorageError(
      'S3_NO_BUCKET',
      `${what}: there is no bucket ${place.bucket} at this endpoint. Correct the name, or AWS_ENDPOINT_URL_S3.`,
      { cause },
    );
  }
  if (status === 404) {
    return new StorageError(
      'NOT_FOUND',
      `${what} is not there, or the bucket is not: correct the path`,
      { cause },
    );
  }
  const isBusy = status === 408 || status === 429 || (status ?? 0) >= 500 || BUSY.has(name);
  if ((status === 403 || status === 401) && !isBusy) {
    return new StorageError(
      'STORAGE_DENIED',
      `${what} may not be used with these credentials (${name}): they need s3:GetObject on it and s3:ListBucket on ` +
        'its bucket; a run that keeps checkpoints there needs s3:PutObject and s3:DeleteObject too',
      { cause },
    );
  }
  if (status === 412) return fileChanged(what);
  if (status === 416) {
    return new StorageError(
      'RANGE_OUTSIDE',
      `${what} ends before the bytes that were asked for: it was cut short or replaced; index it again`,
      { cause },
    );
  }
  if (isBusy || code !== undefined) {
    return new StorageError(
      'STORAGE_UNREACHABLE',
      `${what} cannot be had (${cause.message}): ` +
        (name === 'RequestTimeTooSkewed'
          ? 'set the clock of this machine'
          : 'look after the network, the endpoint (AWS_ENDPOINT_URL_S3) or how much is asked of it at once'),
      { cause, retryable: isBusy || code !== 'ENOTFOUND' },
    );
  }
  return new StorageError('STORAGE_FAILED', `${what} cannot be had (${cause.message})`, { cause });
}

/** As messages name it. */
export function shown({ bucket, key }: S3Place): string {
  return `s3://${bucket}/${key}`;
}

const NO_CREDENTIALS = new Set([
  'CredentialsProviderError',
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidToken',
  'TokenProviderError',
]);
/** Names that come with other statuses than 429 and 5xx; a clock that is wrong comes with 403. */
const BUSY = new Set([
  ...['RequestTimeout', 'RequestTimeTooSkewed', 'SlowDown', 'TimeoutError'],
  ...['BadDigest', 'IncompleteBody'], // damaged on its way
]);
