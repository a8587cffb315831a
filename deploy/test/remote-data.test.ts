/** The same data on this machine and in an S3-compatible store end in the same weights. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { startS3Server } from '../../video/storage/test/s3-server.ts';
import { readSummary, videoloom } from './command.ts';

const FIELDS = ['train.steps=3', 'cluster.workers=1', 'data.allowPrivateHosts=true'];

test('data in a bucket train as those on the disk do, to the same bits', async (context) => {
  const server = await startS3Server();
  if ('skip' in server) {
    context.skip(server.skip);
    return;
  }
  const env = {
    AWS_ENDPOINT_URL: server.endpoint,
    AWS_REGION: 'us-east-1',
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'videoloom-secret-key',
  };
  const work = await temporaryFolder('work');
  try {
    const at = { cwd: work, env };
    const made = await videoloom(
      ['data', 'demo', '--out', 'films', '--train', '12', '--held-out', '2'],
      at,
    );
    assert.equal(made.code, 0, made.output);
    await upload(server.endpoint, join(work, 'films'));

    const train = async (data: string, out: string) => {
      const fields = [...FIELDS, `data.folder=${JSON.stringify(data)}`];
      const args = ['train', 'videobert', '--preset', 'tiny', '--out', out, ...fields];
      const { code, output } = await videoloom(args, at);
      assert.equal(code, 0, output);
      assert.ok(!output.includes('videoloom-secret-key'));
      return (await readSummary(join(work, out))).weightsSha256;
    };
    assert.equal(await train('s3://films/world', 'remote'), await train('films', 'local'));

    const denied = await videoloom(
      ['data', 'index', 's3://nobody/world', '--allow-private-hosts'],
      at,
    );
    assert.equal(denied.code, 1);
    assert.match(denied.output, /S3_NO_BUCKET: .*nobody/);
    const unasked = await videoloom(['data', 'index', `${server.endpoint}/films/world/x.mp4`], at);
    assert.match(unasked.output, /URL_REFUSED|STORE_UNLISTABLE/);
  } finally {
    await server.close();
  }
});

async function upload(endpoint: string, folder: string): Promise<void> {
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';
  const { CreateBucketCommand, PutObjectCommand, S3Client } = await import('@aws-sdk/client-s3');
  const client = new S3Client({
    endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: 'test', secretAccessKey: 'videoloom-secret-key' },
  });
  await client.send(new CreateBucketCommand({ Bucket: 'films' }));
  const files = await readdir(folder, { recursive: true, withFileTypes: true });
  for (const file of files.filter((entry) => entry.isFile())) {
    const path = join(file.parentPath, file.name);
    const Key = `world/${path.slice(folder.length + 1)}`;
    await client.send(new PutObjectCommand({ Bucket: 'films', Key, Body: await readFile(path) }));
  }
  client.destroy();
}
