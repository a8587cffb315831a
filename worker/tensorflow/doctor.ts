import { dirname } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { messageOf } from '../../proto/errors.ts';
import { openTensorflowEngine } from '../backend/tensorflow-engine.ts';
import { findTensorflow, type TensorflowInstallation } from './install.ts';

/** What `videoloom engine doctor tensorflow` found out. */
export interface TensorflowDiagnosis extends Partial<TensorflowInstallation> {
  readonly platform?: string;
  /** Whether a small matrix product came out right. */
  readonly computes: boolean;
  /** What is wrong and how to mend it; undefined when nothing is. */
  readonly problem: string | undefined;
}

/** Loads the installed engine into this process and tries it. Nothing is installed. */
export async function diagnoseTensorflow(cacheDir: string): Promise<TensorflowDiagnosis> {
  const installation = await findTensorflow(cacheDir);
  try {
    const engine = await openTensorflowEngine({ cacheDir: dirname(cacheDir) });
    const a = engine.upload(Float32Array.of(1, 2, 3, 4), [2, 2]);
    const product = await tf.matMul(a, a).data();
    const computes = [7, 10, 15, 22].every((value, i) => product[i] === value);
    const problem = computes
      ? undefined
      : `A product of matrices came out as ${product.join(' ')}.`;
    return { ...installation, platform: engine.platform, computes, problem };
  } catch (error) {
    return { ...installation, computes: false, problem: messageOf(error) };
  }
}
