import { refused } from './allowed.ts';
import { openHttpStore, openUrlStore, type HttpOptions } from './http.ts';
import { openLocalStore } from './local.ts';
import { isUrl } from './paths.ts';
import { openS3Store, openS3UrlStore } from './s3.ts';
import type { Store } from './store.ts';

/** What stores over the network take; a folder needs none of it. */
export type StoreOptions = HttpOptions;

/**
 * The store that `root` names: `https://…`, `http://…`, `s3://bucket/prefix` or a folder. Nothing is read yet.
 * @throws StorageError URL_REFUSED
 */
export function openStore(root: string, options: StoreOptions = {}): Store {
  if (!isUrl(root)) return openLocalStore(root);
  switch (schemeOf(root)) {
    case 'https':
    case 'http':
      return openHttpStore(root, options);
    case 's3':
      return openS3Store(root, options);
    default:
      throw refused(root, UNREADABLE);
  }
}

/** A store and the path in it. */
export interface StoredPlace {
  readonly store: Store;
  readonly path: string;
}

/** Where a location's path leads: into `store`, or for a URL into the web or a bucket. Connections are shared. */
export function openPlaces(
  store: Store,
  options: StoreOptions = {},
): (path: string) => StoredPlace {
  const web = openUrlStore(options);
  const buckets = openS3UrlStore(options);
  return (path) => {
    if (!isUrl(path)) return { store, path };
    switch (schemeOf(path)) {
      case 'https':
      case 'http':
        return { store: web, path };
      case 's3':
        return { store: buckets, path };
      default:
        throw refused(path, UNREADABLE);
    }
  };
}

function schemeOf(url: string): string {
  return url.slice(0, url.indexOf(':')).toLowerCase();
}

const UNREADABLE = 'has a scheme that is not read: use https, http, s3 or a folder';
